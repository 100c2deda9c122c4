//! A task that goes as far towards a limit as it is told, and no further: its arguments are `what` and a
//! number. What ends the task is not answered; else it prints `done`.

use std::fs::File;
use std::hint::black_box;
use std::process::exit;

fn main() {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_default();
    let count: usize = args.next().and_then(|text| text.parse().ok()).unwrap_or(0);
    let done = match what.as_str() {
        "handles" => handles(count),
        "files" => files(count),
        "write" => write(count),
        "random" => {
            black_box(wasip2::random::random::get_random_bytes(count as u64));
            Ok(())
        }
        "memory" => memory(count),
        other => Err(format!("nobody knows {other:?}")),
    };
    match done {
        Ok(()) => println!("done"),
        Err(error) => {
            println!("refused: {error}");
            exit(1);
        }
    }
}

/// Hold so many timers.
fn handles(count: usize) -> Result<(), String> {
    let one = |_| wasip2::clocks::monotonic_clock::subscribe_duration(1);
    black_box((0..count).map(one).collect::<Vec<_>>());
    Ok(())
}

/// Hold so many open files.
fn files(count: usize) -> Result<(), String> {
    let held: Result<Vec<File>, _> = (0..count).map(|_| File::options().append(true).create(true).open("held")).collect();
    held.map(|files| drop(black_box(files))).map_err(|error| error.to_string())
}

/// Give the host so many bytes in one call.
fn write(count: usize) -> Result<(), String> {
    use wasip2::filesystem::preopens::get_directories;
    use wasip2::filesystem::types::{DescriptorFlags, OpenFlags, PathFlags};
    let said = |error: wasip2::filesystem::types::ErrorCode| error.to_string();
    let (directory, _) = get_directories().into_iter().next().ok_or("there is no directory")?;
    let file = directory
        .open_at(PathFlags::empty(), "written", OpenFlags::CREATE, DescriptorFlags::WRITE)
        .map_err(said)?;
    file.write(&vec![b'w'; count], 0).map(drop).map_err(said)
}

/// Touch so many further MiB.
fn memory(count: usize) -> Result<(), String> {
    let mut held = Vec::new();
    for _ in 0..count {
        let mut block: Vec<u8> = Vec::new();
        block.try_reserve_exact(1 << 20).map_err(|error| error.to_string())?;
        block.resize(1 << 20, 1);
        held.push(black_box(block));
    }
    Ok(())
}
