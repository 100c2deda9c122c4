//! What the operating system knows of a thread: its CPU time and its priority.
//!
//! Invariants: every system call that has no safe wrapper stands here. This file must never know what
//! a thread is for.

use std::time::Duration;
use tessera_wit_host::ThreadControl;

/// CPU time that the calling thread has used.
#[must_use]
#[allow(unsafe_code)]
pub fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live timespec of our own, which the call only writes.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    if result != 0 {
        return Duration::ZERO;
    }
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanoseconds)
}

/// For Wasm tasks: turns come first.
const NICE_TASK: libc::c_int = 5;
/// For a turn that takes long: its neighbours' turns come first.
const NICE_BEHIND: libc::c_int = 10;

/// For what nobody waits for.
const NICE_LAST: libc::c_int = 19;

#[allow(unsafe_code)]
fn set_nice(nice: libc::c_int) {
    // SAFETY: takes numbers only; 0 is the calling thread. That it may be refused, where a thread is to
    // come forward again without the right to, costs that thread its place and nothing else.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

/// Let the calling thread stand behind turns for good.
pub fn step_back() {
    set_nice(NICE_TASK);
}

/// Let the calling thread, and those that it starts, stand behind everything for good.
pub fn step_aside() {
    set_nice(NICE_LAST);
}

/// What guests' budgets need of a thread.
pub const CONTROL: ThreadControl = ThreadControl {
    cpu_time,
    set_behind: |behind| set_nice(if behind { NICE_BEHIND } else { 0 }),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_counts_work_and_not_waiting() {
        let start = cpu_time();
        let mut sum = 0_u64;
        while cpu_time() - start < Duration::from_millis(5) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let busy = cpu_time();
        // Nobody sends: the time passes without work.
        let (_sender, nothing) = std::sync::mpsc::channel::<()>();
        assert!(nothing.recv_timeout(Duration::from_millis(20)).is_err());
        assert!(cpu_time() - busy < Duration::from_millis(15));
    }
}
