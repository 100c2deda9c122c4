//! Prints what one replica with RocksDB commits per second. Run by hand:
//! `cargo test -p tessera-replica throughput -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use tessera_replica::{
    Applied, EntryId, Machine, MachineError, Replica, RocksDisk, RowChange, RowReader,
};

use crate::support::{config, identity};

/// One row of the size of the entry per entry, as a task status would write.
struct OneRow;

impl Machine for OneRow {
    type Effect = ();

    fn apply(
        &mut self,
        id: EntryId,
        entry: &[u8],
        _rows: &dyn RowReader,
    ) -> Result<Applied<()>, MachineError> {
        let key = (id.index % 10_000).to_be_bytes().to_vec();
        let row = RowChange::Put {
            table: 1,
            key,
            value: entry.to_vec(),
        };
        Ok(Applied {
            rows: vec![row],
            effects: vec![()],
        })
    }

    fn restore(&mut self, _id: EntryId, _rows: &dyn RowReader) -> Result<(), MachineError> {
        Ok(())
    }
}

#[test]
#[ignore = "a measurement, not a check"]
fn throughput() {
    // On memory the numbers are the CPU's alone.
    for (place, outstanding) in [
        (".", 1u64),
        (".", 64),
        (".", 1_000),
        ("/dev/shm", 1),
        ("/dev/shm", 64),
    ] {
        let dir = tempfile::tempdir_in(place).expect("a directory can be made there");
        let mut disk = RocksDisk::open(dir.path()).expect("the database opens");
        Replica::bootstrap(&mut disk, identity(1), Vec::new()).expect("an empty disk");
        let mut replica = Replica::open(config(1), disk).expect("a sound disk");
        let mut machine = OneRow;
        replica.process(&mut machine).expect("the disk works");
        let (start, syncs) = (Instant::now(), replica.status().syncs);
        let mut worst = Duration::ZERO;
        let mut commits = 0u64;
        while start.elapsed() < Duration::from_secs(3) {
            let turn = Instant::now();
            for _ in 0..outstanding {
                replica.propose(vec![7; 256]).expect("the leader takes it");
            }
            let progress = replica.process(&mut machine).expect("the disk works");
            assert_eq!(progress.applied.len() as u64, outstanding);
            commits += outstanding;
            worst = worst.max(turn.elapsed());
        }
        let seconds = start.elapsed().as_secs_f64();
        let syncs = replica.status().syncs - syncs;
        println!(
            "{place:8} {outstanding:5} outstanding, 256-byte entries: {:8.0} syncs/s, {:8.0} proposals/s, worst batch {worst:?}",
            syncs as f64 / seconds,
            commits as f64 / seconds,
        );
    }
}
