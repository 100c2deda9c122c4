//! A task that computes: for ever, or for as many rounds of a million steps as its first argument
//! says. Must be time-sliced by the host, not stop its neighbours.

use std::hint::black_box;

fn main() {
    let rounds: Option<u64> = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let mut sum: u64 = 0;
    let mut round: u64 = 0;
    while rounds.is_none_or(|rounds| round < rounds) {
        for step in 0..1_000_000_u64 {
            sum = black_box(sum.wrapping_mul(31).wrapping_add(step));
        }
        round = round.wrapping_add(1);
    }
    println!("{sum}");
}
