//! System calls that processes of this crate give up: by a filter of the kernel, for good.
//!
//! Invariants: what is not known to be needed by a guest's host stays out: calls that reach other processes,
//! the network, other namespaces, devices, the kernel itself or another program, and every call that is
//! newer than this list; the filter holds for all later threads. It asks for no privilege beyond
//! `no_new_privs`. This file must never make an exception for one caller.

use libc::{c_long, sock_filter};
use std::io;

/// New calls have one number everywhere; the library does not name this one everywhere.
const FCHMODAT2: c_long = 452;

/// Calls that are refused with EPERM. Nobody here makes them, so that a guest's host that does was taken
/// over.
const REFUSED: &[c_long] = &[
    // Other processes, and other programs.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_execve,
    libc::SYS_execveat,
    // Namespaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    // Files by other ways than their paths, and devices.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_mknodat,
    // Modes, owners and labels of files: which of them are in reach makes no difference to these.
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    // The network: the socket of the agent is open before.
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    // The kernel, its keys, its clocks and its measurements: where its faults are.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_personality,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // Another user, once this process has become its own.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_capset,
];

/// Those that only this kind of machine has.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[c_long] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_mknod,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[c_long] = &[];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// The newest call of the kernel (6.10) that this list was written against. What is newer does not exist
/// here: libraries fall back on what they used before.
const NEWEST: u32 = 462;

// Where the kernel says what is called, in a `seccomp_data`; numbers are little-endian.
const AT_NUMBER: u32 = 0;
const AT_ARCHITECTURE: u32 = 4;
const AT_FIRST_ARGUMENT: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_ABOVE: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const IF_ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const ANSWER: u32 = libc::BPF_RET | libc::BPF_K;

/// Flags of `clone` that make a new namespace: none of them goes with a thread.
const NEW_NAMESPACE: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

const fn step(code: u32, k: u32, then: u8, otherwise: u8) -> sock_filter {
    sock_filter { code: code as u16, jt: then, jf: otherwise, k }
}

const fn refuse(error: i32) -> sock_filter {
    step(ANSWER, libc::SECCOMP_RET_ERRNO | error as u32, 0, 0)
}

/// The program that the kernel asks before each call.
fn program() -> Vec<sock_filter> {
    let number = |call: c_long| u32::try_from(call).unwrap_or(u32::MAX);
    let mut steps = vec![
        step(LOAD, AT_ARCHITECTURE, 0, 0),
        // Calls in the way of another architecture have other numbers.
        step(IF_EQUAL, ARCHITECTURE, 1, 0),
        step(ANSWER, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
        step(LOAD, AT_NUMBER, 0, 0),
        // Also those of the x32 way to call, whose numbers are large.
        step(IF_ABOVE, NEWEST, 0, 1),
        refuse(libc::ENOSYS),
        // Its flags are in memory, where a filter cannot look; threads are made by `clone` instead.
        step(IF_EQUAL, number(libc::SYS_clone3), 0, 1),
        refuse(libc::ENOSYS),
    ];
    for call in REFUSED.iter().chain(REFUSED_HERE) {
        steps.push(step(IF_EQUAL, number(*call), 0, 1));
        steps.push(refuse(libc::EPERM));
    }
    steps.extend([
        // `clone` makes threads of this process and nothing else.
        step(IF_EQUAL, number(libc::SYS_clone), 0, 5),
        step(LOAD, AT_FIRST_ARGUMENT, 0, 0),
        step(IF_ANY_BIT, NEW_NAMESPACE, 0, 1),
        refuse(libc::EPERM),
        step(IF_ANY_BIT, libc::CLONE_THREAD as u32, 1, 0),
        refuse(libc::EPERM),
        step(ANSWER, libc::SECCOMP_RET_ALLOW, 0, 0),
    ]);
    steps
}

/// Give the calls up, for this thread and those that it makes from now on: to be called before the first.
///
/// # Errors
/// When the kernel has no filters, or `no_new_privs` is not set.
#[allow(unsafe_code)]
pub fn enter() -> io::Result<()> {
    let steps = program();
    let program = libc::sock_fprog {
        len: u16::try_from(steps.len()).map_err(io::Error::other)?,
        filter: steps.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program, which lives until the call is over, and writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What became of a call that a guest's host never makes.
#[derive(Debug, serde::Serialize)]
pub struct Tried {
    name: &'static str,
    /// Of the error; 0 when the call was let through.
    errno: i32,
}

/// Try calls, with arguments that would change nothing if they were let through.
#[must_use]
pub fn try_calls() -> Vec<Tried> {
    const NONE: c_long = 0;
    const NO_FD: c_long = -1;
    let thread_of_its_own_users = c_long::from(libc::CLONE_NEWUSER | libc::CLONE_THREAD);
    let calls: &[(&'static str, c_long, [c_long; 3])] = &[
        ("ptrace", libc::SYS_ptrace, [libc::PTRACE_PEEKUSER as c_long, NONE, NONE]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [NONE, NONE, NONE]),
        ("kill", libc::SYS_kill, [c_long::from(std::process::id()), NONE, NONE]),
        ("execve", libc::SYS_execve, [NONE, NONE, NONE]),
        ("unshare", libc::SYS_unshare, [NONE, NONE, NONE]),
        ("setns", libc::SYS_setns, [NO_FD, NONE, NONE]),
        ("mount", libc::SYS_mount, [NONE, NONE, NONE]),
        ("chroot", libc::SYS_chroot, [NONE, NONE, NONE]),
        ("clone-namespace", libc::SYS_clone, [thread_of_its_own_users, NONE, NONE]),
        ("socket-inet", libc::SYS_socket, [c_long::from(libc::AF_INET), c_long::from(libc::SOCK_STREAM), NONE]),
        ("socket-unix", libc::SYS_socket, [c_long::from(libc::AF_UNIX), c_long::from(libc::SOCK_STREAM), NONE]),
        ("socket-netlink", libc::SYS_socket, [c_long::from(libc::AF_NETLINK), c_long::from(libc::SOCK_RAW), NONE]),
        ("connect", libc::SYS_connect, [NO_FD, NONE, NONE]),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, [NO_FD, NONE, NONE]),
        ("fchmodat", libc::SYS_fchmodat, [NO_FD, NONE, NONE]),
        ("fchownat", libc::SYS_fchownat, [NO_FD, NONE, NONE]),
        ("setxattr", libc::SYS_setxattr, [NONE, NONE, NONE]),
        ("bpf", libc::SYS_bpf, [NO_FD, NONE, NONE]),
        ("perf_event_open", libc::SYS_perf_event_open, [NONE, NONE, NO_FD]),
        ("userfaultfd", libc::SYS_userfaultfd, [NO_FD, NONE, NONE]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [NONE, NONE, NONE]),
        ("keyctl", libc::SYS_keyctl, [NO_FD, NONE, NONE]),
        ("kexec_load", libc::SYS_kexec_load, [NONE, NO_FD, NONE]),
        ("init_module", libc::SYS_init_module, [NONE, NONE, NONE]),
        ("clock_settime", libc::SYS_clock_settime, [NO_FD, NONE, NONE]),
        ("setuid", libc::SYS_setuid, [c_long::from(NO_FD), NONE, NONE]),
        ("clone3", libc::SYS_clone3, [NONE, NONE, NONE]),
        ("newer-than-the-list", c_long::from(NEWEST) + 1, [NO_FD, NO_FD, NO_FD]),
    ];
    calls.iter().map(|(name, call, arguments)| Tried { name, errno: try_call(*call, *arguments) }).collect()
}

#[allow(unsafe_code)]
fn try_call(call: c_long, [first, second, third]: [c_long; 3]) -> i32 {
    // SAFETY: numbers only; where a call takes pointers they are null, or of no length.
    let result = unsafe { libc::syscall(call, first, second, third, 0, 0, 0) };
    if result == -1 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_older_than_the_newest_and_named_once() {
        let mut calls: Vec<_> = REFUSED.iter().chain(REFUSED_HERE).copied().collect();
        calls.sort_unstable();
        assert!(calls.windows(2).all(|two| two[0] != two[1]), "{calls:?}");
        assert!(calls.iter().all(|call| u32::try_from(*call).is_ok_and(|call| call <= NEWEST)));
        // The kernel takes at most 4,096 steps.
        assert!(program().len() < 400);
    }
}
