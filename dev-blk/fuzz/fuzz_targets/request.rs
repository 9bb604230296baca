//! The request parser alone: whatever a guest puts into its memory, a parsed request keeps to the disk.
#![no_main]

use std::cell::RefCell;

use dev_blk::request::{Limits, MAX_DATA, MAX_DESCRIPTORS, MAX_RANGES, Operation, Parser, SECTOR, SERIAL_BYTES};
use guest::{MEMORY, with_guest};
use libfuzzer_sys::fuzz_target;
use virtio_queue::QueueOwnedT;

thread_local! {
    static PARSER: RefCell<Parser> = RefCell::default();
}

fuzz_target!(|input: &[u8]| {
    with_guest(input, |choice, memory, mut queue| {
        let limits = Limits { capacity: choice.sectors(), read_only: choice.read_only };
        let Ok(chains) = queue.iter(memory) else { return };
        for chain in chains {
            PARSER.with_borrow_mut(|parser| {
                let Ok(request) = parser.parse(memory, chain, limits) else { return };
                assert!(request.status.0 < MEMORY as u64);
                assert!(request.readable.len() + request.writable.len() <= MAX_DESCRIPTORS);
                let readable: u64 = request.readable.iter().map(|segment| u64::from(segment.length)).sum();
                let writable = request.writable_bytes();
                assert!(readable < 1 << 32 && writable < 1 << 32);
                let inside = |offset: u64, bytes: u64| {
                    assert!(offset.is_multiple_of(SECTOR) && bytes.is_multiple_of(SECTOR));
                    assert!(offset.checked_add(bytes).is_some_and(|end| end <= choice.sectors() * SECTOR));
                };
                match request.operation {
                    Ok(Operation::Read { offset }) => {
                        assert_eq!(readable, 0);
                        inside(offset, writable);
                    }
                    Ok(Operation::Write { offset }) => {
                        assert_eq!((writable, choice.read_only), (0, false));
                        inside(offset, readable);
                    }
                    Ok(Operation::Discard | Operation::WriteZeroes) => {
                        assert!(!choice.read_only && (1..=MAX_RANGES).contains(&request.ranges.len()));
                        request.ranges.iter().for_each(|range| inside(range.offset, range.length));
                    }
                    Ok(Operation::Flush) => assert_eq!((readable, writable), (0, 0)),
                    Ok(Operation::Identify) => assert!(writable >= SERIAL_BYTES as u64 && writable <= MAX_DATA),
                    Err(status) => assert!(status == 1 || status == 2),
                }
            });
        }
    });
});
