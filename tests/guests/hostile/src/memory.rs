//! Attacks on time, memory and stack that need no call of the host.

use std::hint::black_box;

const MIB: usize = 1 << 20;

/// The attack of this name, if it is one of these.
pub fn attack(name: &str) -> Option<String> {
    Some(match name {
        "handle-loop" => spin(),
        "copy-loop" => copy_for_ever(),
        "stack" => recurse(1).to_string(),
        "panic" => panic!("asked to panic"),
        "panic-giant" => panic!("{}", "P".repeat(16 * MIB)),
        "abort" => std::process::abort(),
        "exit-zero" => std::process::exit(0),
        "grow-steps" => grow_in_steps(),
        "grow-at-once" => grow_at_once(),
        "grow-touch" => grow_and_touch(),
        "residue" => residue(),
        _ => return None,
    })
}

/// Never returns.
pub fn spin() -> ! {
    let mut turns: u64 = 0;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

/// Bulk operations only: each is one instruction.
fn copy_for_ever() -> ! {
    let mut block = vec![7_u8; 24 * MIB];
    loop {
        block.copy_within(0..12 * MIB, 12 * MIB);
        black_box(&mut block).fill(8);
    }
}

#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    let below = recurse(black_box(depth.wrapping_add(1)));
    below.wrapping_add(frame.iter().sum())
}

fn grow_in_steps() -> String {
    let mut held: Vec<Vec<u8>> = Vec::with_capacity(8_192);
    while held.len() < held.capacity() {
        let mut block = Vec::new();
        if block.try_reserve_exact(MIB).is_err() {
            return format!(
                "contained: memory ended after {} MiB",
                black_box(held.len())
            );
        }
        block.resize(MIB, 1);
        held.push(block);
    }
    format!("ESCAPED: {} MiB", held.len())
}

/// Use memory until an allocation fails, which ends the guest.
pub fn grow_and_touch() -> ! {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        held.push(black_box(vec![1_u8; MIB]));
    }
}

#[cfg(target_arch = "wasm32")]
fn grow_pages(pages: usize) -> Option<usize> {
    let before = core::arch::wasm32::memory_grow::<0>(pages);
    (before != usize::MAX).then_some(before * 65_536)
}

#[cfg(not(target_arch = "wasm32"))]
fn grow_pages(_pages: usize) -> Option<usize> {
    None
}

fn grow_at_once() -> String {
    match grow_pages(60_000) {
        None => "contained: 3,750 MiB at once were refused".to_owned(),
        Some(_) => "ESCAPED: 3,750 MiB at once".to_owned(),
    }
}

/// New pages hold nothing of whoever had them before.
#[allow(unsafe_code)]
fn residue() -> String {
    const PAGES: usize = 320;
    let Some(start) = grow_pages(PAGES) else {
        return "no memory to look at".to_owned();
    };
    // SAFETY: these pages were just made, and nothing else knows of them.
    let fresh = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, PAGES * 65_536) };
    let left = fresh.iter().filter(|byte| **byte != 0).count();
    // For whoever comes after.
    fresh.fill(0xaa);
    black_box(fresh);
    if left == 0 {
        "contained: 20 MiB of new memory hold nothing".to_owned()
    } else {
        format!("ESCAPED: {left} bytes of somebody else's memory")
    }
}
