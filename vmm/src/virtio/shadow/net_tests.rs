//! Queues that go one way: buffers lent to a device, and packets sent by it.

use std::collections::BTreeSet;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::super::guest_ring::F_INDIRECT_DESC;
use super::super::net::Net;
use super::super::pool::Pool;
use super::bench::{BOTH, BUFFERS, Bench, DESCRIPTORS, SIZE, SPACE};
use super::hostile_tests::scribble;
use super::*;
use crate::mmu::GuestRam;

const WRITE: u16 = 2;

fn bench(seed: u64, queue: usize) -> Bench {
    let mut b = Bench::new(SmallRng::seed_from_u64(seed), BOTH, Transfer::Copied);
    b.carry(Net.chains(queue));
    b
}

/// A queue of buffers that the guest lends.
fn receiving(seed: u64) -> Bench {
    bench(seed, 0)
}

/// A queue of packets that it sends.
fn sending(seed: u64) -> Bench {
    bench(seed, 1)
}

/// The driver makes head `head` available: one buffer of `length` bytes, filled with `head` plus one.
fn offer(b: &mut Bench, head: u16, length: u32, flags: u16) {
    let at = BUFFERS + SPACE * u64::from(head);
    b.descriptor(DESCRIPTORS + 16 * u64::from(head), (at, length), flags, 0);
    assert!(GuestRam::write(&b.ram, at, &vec![head as u8 + 1; length as usize]));
    b.writable[usize::from(head)] = if flags == WRITE { vec![(at, length)] } else { Vec::new() };
    b.waiting.insert(head);
    b.offer(head);
}

fn lend(b: &mut Bench, head: u16, length: u32) {
    offer(b, head, length, WRITE);
}

fn bytes_of(b: &Bench, head: u16, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    assert!(GuestRam::read(&b.ram, BUFFERS + SPACE * u64::from(head), &mut bytes));
    bytes
}

#[test]
fn only_what_was_written_is_copied_to_a_lent_buffer() {
    let mut b = receiving(1);
    lend(&mut b, 3, 1526);
    b.publish().unwrap();
    let (id, readable, writable) = b.take().unwrap();
    assert_eq!((readable.len(), writable.len(), writable[0].1), (0, 1, 1526));
    b.device_write(writable[0].0, &[0xee; 1526]).unwrap();
    b.give(id.into(), 72);
    b.harvest().unwrap();
    assert_eq!(b.collect(), [(3, 72)]);
    let bytes = bytes_of(&b, 3, 1526);
    assert!(bytes[..72].iter().all(|byte| *byte == 0xee) && bytes[72..].iter().all(|byte| *byte == 4));
    lend(&mut b, 4, 100);
    b.publish().unwrap();
    let (id, ..) = b.take().unwrap();
    b.give(id.into(), 101);
    assert_eq!(b.harvest(), Err(PeerError::Length(101, 100)));
}

#[test]
fn a_queue_goes_one_way() {
    let wrong = |mut b: Bench, readable, writable| {
        b.chain_of(readable, writable);
        let error = b.publish().unwrap_err();
        assert!(b.take().is_none() && b.shadow.outstanding() == 0);
        error
    };
    assert_eq!(wrong(receiving(2), 12, 12), GuestError::Direction(12, 12));
    assert_eq!(wrong(receiving(2), 0, 11), GuestError::Short(0, 11));
    assert_eq!(wrong(sending(2), 12, 1), GuestError::Direction(12, 1));
    assert_eq!(wrong(sending(2), 11, 0), GuestError::Short(11, 0));
    let mut b = sending(2);
    b.chain_of(1500, 0);
    b.publish().unwrap();
    let (id, ..) = b.take().unwrap();
    b.give(id.into(), 1);
    assert_eq!(b.harvest(), Err(PeerError::Length(1, 0)), "there is nothing to write");
}

/// Else a guest that lends much could never send.
#[test]
fn what_is_lent_leaves_half_of_the_region() {
    let mut b = receiving(3);
    (0..SIZE).for_each(|head| lend(&mut b, head, 50_000));
    b.publish().unwrap();
    let (half, lent) = (b.pool.capacity() / 2, b.shadow.outstanding());
    assert!(lent > 0 && lent < SIZE && b.shadow.due() == 0, "{lent}");
    assert!(b.pool.take(half).is_some());
    // One that not even the half takes is the driver's fault.
    let mut b = receiving(3);
    b.pool = Pool::new(b.pool.take(0).unwrap().first + 4, 8);
    lend(&mut b, 0, 5 * 4096);
    assert_eq!(b.publish(), Err(GuestError::TooLarge(5 * 4096)));
}

#[test]
fn lent_buffers_go_to_the_next_process_and_a_reset_does_not_wait_for_them() {
    let mut b = receiving(4);
    (0..10).for_each(|head| lend(&mut b, head, 2000));
    b.publish().unwrap();
    for _ in 0..3 {
        assert!(b.take().is_some());
    }
    b.shadow.detach_device();
    assert!(b.shadow.out().is_empty(), "none of them is to blame");
    assert!(!b.shadow.lose(&mut Dma::new(&b.ram), &Net) && !b.shadow.fail_all(&mut Dma::new(&b.ram), &Net));
    assert_eq!(b.collect(), []);
    b.attach_device();
    b.publish().unwrap();
    assert_eq!((b.shadow.outstanding(), b.shadow.due()), (10, 0));
    b.shadow.reset_guest();
    assert!(b.shadow.holds_earlier_life() && b.shadow.due() == 0);
    let before = b.snapshot();
    let (id, _, writable) = b.take().unwrap();
    b.device_write(writable[0].0, &[9; 2000]).unwrap();
    b.give(id.into(), 2000);
    b.harvest().unwrap();
    b.shadow.detach_device();
    assert!(!b.shadow.holds_earlier_life() && b.snapshot() == before, "not a byte");
}

#[test]
fn what_is_sent_is_sent_once_or_lost() {
    for features in [F_INDIRECT_DESC, BOTH] {
        let mut b = Bench::new(SmallRng::seed_from_u64(5), features, Transfer::Copied);
        b.carry(Net.chains(1));
        (0..6).for_each(|head| offer(&mut b, head, 1000 + u32::from(head), 0));
        b.publish().unwrap();
        let (id, readable, _) = b.take().unwrap();
        assert_eq!(b.device_read::<2>(readable[0].0), Some([1, 1]));
        b.give(id.into(), 0);
        b.harvest().unwrap();
        assert_eq!(b.collect(), [(0, 0)]);
        assert!(b.take().is_some());
        b.shadow.detach_device();
        assert!(b.shadow.out().is_empty());
        // With an event index this driver has asked for one interrupt, and had it.
        assert!(b.shadow.lose(&mut Dma::new(&b.ram), &Net) || features == BOTH, "the driver waits for its buffers");
        assert_eq!(b.collect(), [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0)]);
        b.attach_device();
        b.publish().unwrap();
        assert!(b.take().is_none() && b.shadow.outstanding() == 0);
        offer(&mut b, 7, 100, 0);
        b.shadow.refuse(&mut Dma::new(&b.ram), &Net).unwrap();
        b.shadow.fail_all(&mut Dma::new(&b.ram), &Net);
        assert_eq!(b.collect(), [(7, 0)], "without any process, too");
    }
}

/// A device that writes garbage anywhere it can: RAM outside the lent buffers never changes, and every buffer comes back
/// once at most, with no more than it holds.
#[test]
fn a_hostile_device_reaches_only_lent_buffers() {
    for seed in 0..6 {
        let mut b = receiving(100 + seed);
        let mut dropped = 0;
        for _ in 0..150 {
            for head in 0..SIZE {
                if !b.waiting.contains(&head) && b.rng.random_ratio(1, 4) {
                    let length = b.rng.random_range(12..3000);
                    lend(&mut b, head, length);
                }
            }
            b.publish().unwrap();
            let (before, heads) = (b.snapshot(), b.waiting.clone());
            for _ in 0..b.rng.random_range(0..6) {
                scribble(&mut b);
            }
            let result = b.harvest();
            b.assert_only_changed(&before, &heads);
            for (head, length) in b.collect() {
                assert!(b.waiting.remove(&head), "{head}");
                assert!(length <= b.writable[usize::from(head)][0].1);
            }
            if result.is_err() {
                dropped += 1;
                b.shadow.detach_device();
                b.attach_device();
            }
        }
        assert!(dropped > 10, "{dropped}");
        // An honest successor gives all of them back.
        b.shadow.detach_device();
        b.attach_device();
        while !b.waiting.is_empty() {
            b.publish().unwrap();
            while let Some((id, ..)) = b.take() {
                b.give(id.into(), 12);
            }
            b.harvest().unwrap();
            let back: BTreeSet<u16> = b.collect().into_iter().map(|(head, _)| head).collect();
            assert!(!back.is_empty() && back.iter().all(|head| b.waiting.remove(head)));
        }
        let all = b.pool.capacity();
        assert!(b.pool.take(all).is_some(), "every page came back");
    }
}
