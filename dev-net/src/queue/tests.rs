use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

const SIZE: u16 = 16;
const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x8000;
const MEMORY: usize = 0x2_0000;

fn queue() -> (Queue, GuestMemoryMmap) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_size(SIZE);
    queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(AVAIL)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_ready(true);
    (queue, memory)
}

/// Makes descriptor `index` the whole of a chain, and offers it as the `index`th.
fn offer(memory: &GuestMemoryMmap, index: u16, length: u32, flags: u16) {
    let word = u128::from(BUFFERS) | u128::from(length) << 64 | u128::from(flags) << 96;
    memory.write_obj(word, GuestAddress(TABLE + 16 * u64::from(index))).unwrap();
    memory.write_obj(index, GuestAddress(AVAIL + 4 + 2 * u64::from(index))).unwrap();
    memory.write_obj(index + 1, GuestAddress(AVAIL + 2)).unwrap();
}

#[test]
fn packets_are_taken_without_their_header_and_put_with_one() {
    let ((mut queue, memory), mut frame) = (queue(), [0; FRAME]);
    assert_eq!(take(&mut queue, &memory, &mut frame).unwrap(), None);
    memory.write_slice(&[7; 100], GuestAddress(BUFFERS + HEADER as u64)).unwrap();
    offer(&memory, 0, 112, 0);
    assert_eq!(take(&mut queue, &memory, &mut frame).unwrap(), Some(100));
    assert!(frame[..100].iter().all(|byte| *byte == 7));
    // Too long, too short, not readable: no packet, and no end of the queue.
    for (index, (length, flags)) in (1..).zip([((HEADER + FRAME + 1) as u32, 0), (HEADER as u32 - 1, 0), (100, 2)]) {
        offer(&memory, index, length, flags);
        assert_eq!(take(&mut queue, &memory, &mut frame).unwrap(), Some(0), "{length} {flags}");
    }
    assert_eq!(memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap(), 4, "all came back");
    offer(&memory, 4, 200, 2);
    assert!(put(&mut queue, &memory, &[9; 60]).unwrap());
    let mut given = [0; 73];
    memory.read_slice(&mut given, GuestAddress(BUFFERS)).unwrap();
    assert!(given[..HEADER] == RECEIVED && given[HEADER..72].iter().all(|byte| *byte == 9) && given[72] != 9);
    assert_eq!(memory.read_obj::<u32>(GuestAddress(USED + 4 + 8 * 4 + 4)).unwrap(), 72);
    offer(&memory, 5, 71, 2);
    assert!(put(&mut queue, &memory, &[9; 60]).unwrap());
    assert_eq!(memory.read_obj::<u32>(GuestAddress(USED + 4 + 8 * 5 + 4)).unwrap(), 0, "it does not fit");
    assert!(!put(&mut queue, &memory, &[9; 60]).unwrap());
}

/// Rings and descriptors of any bytes: an error or a packet, and an end.
#[test]
fn garbage_is_survived() {
    let mut found = 0;
    for seed in 0..2000 {
        let (mut rng, (mut queue, memory)) = (SmallRng::seed_from_u64(seed), queue());
        let mut bytes = vec![0; 0x3000];
        rng.fill_bytes(&mut bytes);
        // Most descriptors are in memory, or nothing else would be tried.
        for descriptor in bytes[..16 * usize::from(SIZE)].chunks_mut(16).filter(|_| rng.random_ratio(7, 8)) {
            // address, length, flags, next
            descriptor[2..8].fill(0);
            descriptor[9] &= 7;
            descriptor[10..12].fill(0);
            (descriptor[12], descriptor[13]) = (descriptor[12] & 3, 0);
            (descriptor[14], descriptor[15]) = (descriptor[14] & 15, 0);
        }
        for entry in bytes[(AVAIL - TABLE) as usize + 4..].chunks_mut(2).take(SIZE.into()) {
            (entry[0], entry[1]) = (entry[0] % (SIZE as u8 + 1), 0);
        }
        memory.write_slice(&bytes, GuestAddress(TABLE)).unwrap();
        memory.write_obj(rng.random_range(0..SIZE + 2), GuestAddress(AVAIL + 2)).unwrap();
        let mut frame = [0; FRAME];
        for _ in 0..SIZE + 2 {
            found += usize::from(matches!(take(&mut queue, &memory, &mut frame), Ok(Some(1..))));
            let _ = put(&mut queue, &memory, &frame[..rng.random_range(0..FRAME)]);
        }
    }
    assert!(found > 50, "{found} packets");
}
