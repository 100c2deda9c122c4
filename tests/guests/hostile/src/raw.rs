//! Attacks below the bindings: arguments that no generated code would pass.
//!
//! The functions are imported a second time under their raw signatures, so that pointers, lengths,
//! discriminants and handles can be anything.
#![allow(unsafe_code)]

use std::hint::black_box;

/// Room for a result in memory; larger than any of these functions needs.
type Area = [u64; 8];

#[cfg(target_family = "wasm")]
mod host {
    #[link(wasm_import_module = "tessera:framework/state@0.1.0")]
    unsafe extern "C" {
        #[link_name = "get"]
        pub fn state_get(key: usize, key_len: usize, result: *mut u8);
    }
    #[link(wasm_import_module = "tessera:framework/driver@0.1.0")]
    unsafe extern "C" {
        #[link_name = "reconcile"]
        pub fn reconcile(tasks: usize, count: usize, result: *mut u8);
        #[link_name = "accept"]
        pub fn accept(
            offers: usize,
            offer_count: usize,
            operations: usize,
            operation_count: usize,
            refuse_ms: i64,
            has_id: i32,
            id: usize,
            id_len: usize,
            result: *mut u8,
        );
    }
    #[link(wasm_import_module = "tessera:framework/log@0.1.0")]
    unsafe extern "C" {
        #[link_name = "enabled"]
        pub fn log_enabled(level: i32) -> i32;
    }
}

#[cfg(not(target_family = "wasm"))]
#[allow(clippy::too_many_arguments)]
mod host {
    pub unsafe fn state_get(_: usize, _: usize, _: *mut u8) {}
    pub unsafe fn reconcile(_: usize, _: usize, _: *mut u8) {}
    pub unsafe fn accept(
        _: usize,
        _: usize,
        _: usize,
        _: usize,
        _: i64,
        _: i32,
        _: usize,
        _: usize,
        _: *mut u8,
    ) {
    }
    pub unsafe fn log_enabled(_: i32) -> i32 {
        0
    }
}

fn get(key: usize, len: usize) {
    let mut area: Area = [0; 8];
    // SAFETY: the result has room; that the key is nonsense is the point, and the host's to find.
    unsafe { host::state_get(key, len, area.as_mut_ptr().cast()) };
    black_box(area);
}

/// The attack of this name, if it is one of these. Each should end the instance.
pub fn attack(name: &str) -> Option<String> {
    match name {
        "raw-pointer-beyond" => get(0xffff_0000, 100),
        "raw-length-beyond" => get(16, 0x7fff_ffff),
        "raw-utf8" => {
            let bytes = [b'k', 0xff, 0xfe];
            get(bytes.as_ptr() as usize, bytes.len());
        }
        "raw-surrogate" => {
            let bytes = [0xed_u8, 0xa0, 0x80];
            get(bytes.as_ptr() as usize, bytes.len());
        }
        "raw-result-beyond" => {
            // SAFETY: that there is nothing at the address is the host's to find.
            unsafe { host::state_get(16, 1, 0xffff_fff0_usize as *mut u8) };
        }
        "raw-unaligned" => {
            let list = [0_u64; 4];
            let mut area: Area = [0; 8];
            // SAFETY: the list is inside of `list`; its alignment is the host's to find.
            unsafe { host::reconcile(list.as_ptr() as usize + 1, 1, area.as_mut_ptr().cast()) };
            black_box(area);
        }
        "raw-giant-list" => giant_list(),
        "raw-giant-string" => {
            let key = vec![b'k'; 40 << 20];
            get(key.as_ptr() as usize, key.len());
        }
        "raw-enum" => {
            // SAFETY: takes and gives a number.
            black_box(unsafe { host::log_enabled(250) });
        }
        "raw-variant" => bad_variant(),
        "raw-drop-twice" => {
            let pollable = wasip2::clocks::monotonic_clock::subscribe_duration(1);
            let handle = pollable.handle();
            drop(pollable);
            drop(from_handle(handle));
        }
        "raw-use-after-drop" => {
            let pollable = wasip2::clocks::monotonic_clock::subscribe_duration(1);
            let handle = pollable.handle();
            drop(pollable);
            from_handle(handle).block();
        }
        "raw-guessed-handle" => from_handle(4_242).block(),
        "raw-confused-handle" => {
            // A stream in place of a pollable.
            let stream = wasip2::cli::stdout::get_stdout();
            from_handle(stream.handle()).block();
        }
        _ => return None,
    }
    Some("ESCAPED: the host took it".to_owned())
}

fn from_handle(handle: u32) -> wasip2::io::poll::Pollable {
    // SAFETY: nothing of Rust depends on what the number stands for.
    unsafe { wasip2::io::poll::Pollable::from_handle(handle) }
}

/// A list whose million elements all are the same kilobyte: 8 MiB here, a gigabyte there.
fn giant_list() {
    let text = [b't'; 1_000];
    let element = (text.as_ptr() as u32, text.len() as u32);
    let list = vec![element; 1 << 20];
    let mut area: Area = [0; 8];
    // SAFETY: list and texts are where they are said to be.
    unsafe { host::reconcile(list.as_ptr() as usize, list.len(), area.as_mut_ptr().cast()) };
    black_box(area);
}

/// An operation of a kind that does not exist.
fn bad_variant() {
    let operations = [0xee_u64; 32];
    let mut area: Area = [0; 8];
    let at = operations.as_ptr() as usize;
    // SAFETY: the operation has more room than any kind of it takes.
    unsafe { host::accept(0, 0, at, 1, 0, 0, 0, 0, area.as_mut_ptr().cast()) };
    black_box(area);
}
