//! A driver, a shadow queue and a device that keep the rules, in any order of steps; and single lies of each.

use std::collections::BTreeSet;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::super::block::Block;
use super::super::guest_ring::{F_INDIRECT_DESC, Places};
use super::super::memory::Shared;
use super::super::pool::Pool;
use super::bench::{BOTH, Bench, SIZE};
use super::*;
use crate::mmu::GuestRam;

fn bench(seed: u64, features: u64) -> Bench {
    Bench::new(SmallRng::seed_from_u64(seed), features, Transfer::Copied)
}

/// Takes what the driver finds and checks it: every head once, its buffers filled by the device.
pub fn check_completions(b: &mut Bench) -> usize {
    let found = b.collect();
    for (head, length) in &found {
        assert!(b.waiting.remove(head), "head {head} was not waited for, or completed twice");
        let buffers = &b.writable[usize::from(*head)];
        assert_eq!(*length, buffers.iter().map(|(_, length)| length).sum::<u32>());
        for (at, length) in buffers {
            let mut bytes = vec![0; *length as usize];
            assert!(GuestRam::read(&b.ram, *at, &mut bytes));
            assert!(bytes.iter().all(|byte| *byte == *head as u8 + 101), "head {head}");
        }
    }
    found.len()
}

#[test]
fn requests_go_out_and_come_back_once_in_any_mixture() {
    for features in [F_INDIRECT_DESC, BOTH] {
        let (mut b, mut done) = (bench(1, features), 0);
        for _ in 0..4000 {
            match b.rng.random_range(0..4) {
                0 => drop(b.submit()),
                1 => b.publish().unwrap(),
                2 => drop(b.work()),
                _ => {
                    b.harvest().unwrap();
                    done += check_completions(&mut b);
                }
            }
        }
        while !b.waiting.is_empty() {
            b.publish().unwrap();
            while b.work() {}
            b.harvest().unwrap();
            done += check_completions(&mut b);
        }
        assert!(done > 500, "{done}");
        assert_eq!(b.shadow.outstanding(), 0);
        let all = b.pool.capacity();
        assert!(b.pool.take(all).is_some(), "every page came back");
    }
}

#[test]
fn a_full_region_leaves_chains_in_the_guests_ring() {
    let mut b = bench(2, BOTH);
    b.pool = Pool::new(b.pool.take(0).unwrap().first + 4, 8);
    while b.submit().is_some() {}
    b.publish().unwrap();
    let held = b.shadow.outstanding();
    assert!(held > 0 && held < SIZE, "{held}");
    let mut rounds = 0;
    while !b.waiting.is_empty() {
        assert!(b.work(), "what fits goes out");
        b.harvest().unwrap();
        check_completions(&mut b);
        b.publish().unwrap();
        rounds += 1;
    }
    assert_eq!(rounds, SIZE);
}

#[test]
fn a_replacement_gets_what_is_outstanding_and_the_guest_sees_each_once() {
    for transfer in [Transfer::Copied, Transfer::Direct] {
        let mut b = Bench::new(SmallRng::seed_from_u64(3), BOTH, transfer);
        for _ in 0..200 {
            for _ in 0..b.rng.random_range(0..20) {
                b.submit();
            }
            b.publish().unwrap();
            for _ in 0..b.rng.random_range(0..10) {
                b.work();
            }
            if b.rng.random() {
                b.harvest().unwrap();
            }
            // What the dead one completed and nobody looked at is done again.
            if b.rng.random() {
                b.shadow.detach_device();
                b.attach_device();
            }
            check_completions(&mut b);
        }
        while !b.waiting.is_empty() {
            b.publish().unwrap();
            while b.work() {}
            b.harvest().unwrap();
            check_completions(&mut b);
        }
        assert_eq!(b.shadow.outstanding(), 0);
        let all = b.pool.capacity();
        assert!(b.pool.take(all).is_some(), "every page came back");
    }
}

#[test]
fn nothing_is_copied_after_a_reset() {
    let mut b = bench(4, BOTH);
    for _ in 0..10 {
        b.submit();
    }
    b.publish().unwrap();
    while b.work() {}
    b.shadow.reset_guest();
    let before = b.snapshot();
    assert_eq!(b.harvest(), Ok(Harvest { completed: 10, interrupt: false }));
    assert!(b.snapshot() == before, "not a byte");
    assert_eq!(b.shadow.outstanding(), 0);
    // A new life starts before the old one's requests are back.
    b.attach_guest();
    b.submit();
    b.publish().unwrap();
    b.shadow.reset_guest();
    b.attach_guest();
    let before = b.snapshot();
    while b.work() {}
    assert_eq!(b.harvest().unwrap().completed, 1);
    assert!(b.snapshot() == before);
}

#[test]
fn failing_ends_every_chain_with_an_error() {
    let mut b = bench(5, BOTH);
    for _ in 0..20 {
        b.submit();
    }
    b.publish().unwrap();
    let before = b.snapshot();
    b.shadow.detach_device();
    assert!(b.shadow.fail_all(&mut Dma::new(&b.ram), &Block));
    assert_eq!(b.shadow.outstanding(), 0);
    let heads: BTreeSet<u16> = b.waiting.clone();
    b.assert_only_changed(&before, &heads);
    for (head, length) in b.collect() {
        assert!(b.waiting.remove(&head));
        let (at, size) = *b.writable[usize::from(head)].last().unwrap();
        let mut status = [0];
        assert!(GuestRam::read(&b.ram, at + u64::from(size) - 1, &mut status));
        assert_eq!((status[0], length), (1, 1));
    }
    assert!(b.waiting.is_empty());
}

#[test]
fn a_completion_is_checked_against_the_record() {
    let lie = |id: u32, extra: i64| {
        let mut b = bench(6, BOTH);
        b.submit();
        b.publish().unwrap();
        let (_, _, writable) = b.take().unwrap();
        let room: u32 = writable.iter().map(|(_, length)| length).sum();
        b.give(id, (i64::from(room) + extra) as u32);
        let result = b.harvest();
        (result.map(|_| b.collect().len()), b.shadow.outstanding(), room)
    };
    // Chains are numbered from zero, in the order in which they were free.
    let own = 0;
    assert_eq!(lie(own, 0).0, Ok(1));
    let (result, outstanding, room) = lie(own, 1);
    assert_eq!((result, outstanding), (Err(PeerError::Length(room + 1, room.into())), 1));
    assert_eq!(lie(own + 1, 0).0, Err(PeerError::Id(own + 1)), "not the first of a chain");
    assert_eq!(lie(own + 4, 0).0, Err(PeerError::Id(own + 4)), "not outstanding");
    assert_eq!(lie(!3, 0).0, Err(PeerError::Id(!3)));
    let mut b = bench(7, BOTH);
    b.region.store_u16(Control::of(0).used + 2, 1).unwrap();
    assert_eq!(b.harvest(), Err(PeerError::Count(1, 0)));
}

/// With an event index a driver asks for one interrupt and waits. A device that completes a request and then breaks the
/// protocol must not make it wait for ever.
#[test]
fn a_completion_before_an_error_interrupts_all_the_same() {
    for features in [F_INDIRECT_DESC, BOTH] {
        let mut b = bench(8, features);
        b.submit();
        b.submit();
        b.publish().unwrap();
        assert!(b.work());
        b.give(!3, 0);
        let (harvest, result) = b.try_harvest();
        assert_eq!((harvest, result), (Harvest { completed: 1, interrupt: true }, Err(PeerError::Id(!3))));
        assert_eq!(check_completions(&mut b), 1);
    }
}

#[test]
fn a_request_that_cannot_be_answered_does_not_reach_the_device() {
    for (readable, writable) in [(16, 0), (15, 1), (0, 512)] {
        let mut b = bench(10, 0);
        b.chain_of(readable, writable);
        assert_eq!(b.publish(), Err(GuestError::Short(readable.into(), writable.into())));
        assert!(b.take().is_none() && b.shadow.outstanding() == 0);
    }
    let mut b = bench(10, 0);
    b.chain_of(16, 1);
    b.publish().unwrap();
    assert!(b.work());
}

/// The device sees a chain only once it is kicked: else it would be blamed for not giving it back after the reset.
#[test]
fn a_chain_before_a_guests_error_is_kicked_all_the_same() {
    for features in [F_INDIRECT_DESC, BOTH] {
        let mut b = bench(9, features);
        b.submit();
        b.offer(SIZE);
        assert_eq!(b.try_publish(), (true, Err(GuestError::Index(SIZE, SIZE))));
        assert!(b.work(), "it is there");
    }
}

#[test]
fn queues_that_are_not_in_ram_are_refused() {
    let ram = GuestRam::new(1 << 20).unwrap();
    let good = Places { size: 256, descriptors: 0x1000, avail: 0x2000, used: 0x3000 };
    assert!(GuestRing::new(&ram, good, BOTH).is_ok());
    let end = 1 << 20;
    for (places, error) in [
        (Places { size: 0, ..good }, GuestError::Size(0)),
        (Places { size: 3, ..good }, GuestError::Size(3)),
        (Places { descriptors: 0x1008, ..good }, GuestError::Place(0x1008)),
        (Places { descriptors: end - 0x800, ..good }, GuestError::Place(end - 0x800)),
        (Places { avail: 0x2001, ..good }, GuestError::Place(0x2001)),
        (Places { used: !3, ..good }, GuestError::Place(!3)),
        (Places { used: 0x3002, ..good }, GuestError::Place(0x3002)),
    ] {
        assert_eq!(GuestRing::new(&ram, places, BOTH).map(drop), Err(error));
    }
}

/// While a request is on trial the others are nobody's: a device that guesses their numbers gets nowhere.
#[test]
fn what_is_held_cannot_be_completed_and_can_be_released_one_by_one() {
    let mut b = bench(11, BOTH);
    (0..5).for_each(|head| assert_eq!(b.submit(), Some(head)));
    b.publish().unwrap();
    assert_eq!(b.shadow.out(), [0, 1, 2, 3, 4]);
    b.shadow.detach_device();
    b.attach_device();
    assert!(b.take().is_none() && b.shadow.outstanding() == 0 && b.shadow.has(4) && !b.shadow.has(5));
    b.give(0, 0);
    assert_eq!(b.harvest(), Err(PeerError::Count(1, 0)));
    b.shadow.detach_device();
    b.attach_device();
    assert!(b.release(2), "a kick is wanted");
    assert!(!b.release(2) && b.shadow.out() == [2]);
    b.give(4, 0);
    assert_eq!(b.harvest(), Err(PeerError::Id(4)), "held, not out");
    b.shadow.detach_device();
    b.attach_device();
    for number in [3, 1] {
        b.release(number);
        assert!(b.work());
        b.harvest().unwrap();
        assert!(!b.shadow.has(number) && check_completions(&mut b) == 1);
    }
    // The rest goes out with whatever is new.
    b.submit();
    b.publish().unwrap();
    assert_eq!(b.shadow.outstanding(), 4);
    while b.work() {}
    b.harvest().unwrap();
    assert_eq!(check_completions(&mut b), 4);
    let all = b.pool.capacity();
    assert!(b.pool.take(all).is_some(), "every page came back");
}

/// Another queue may have taken the room: that is no reason to fail what is held, nor to let newer chains pass it.
#[test]
fn what_finds_no_room_again_waits_for_some() {
    let mut b = bench(13, BOTH);
    while b.submit().is_some() {}
    b.publish().unwrap();
    let all = b.shadow.out();
    b.shadow.detach_device();
    b.attach_device();
    let others = b.pool.take(b.pool.capacity() - 8).unwrap();
    b.publish().unwrap();
    let out = b.shadow.out();
    assert!(out.len() < all.len() && all.starts_with(&out), "{out:?}");
    b.pool.give(others);
    b.publish().unwrap();
    assert!(b.shadow.out().len() >= all.len(), "none has failed");
    while !b.waiting.is_empty() {
        while b.work() {}
        b.harvest().unwrap();
        check_completions(&mut b);
        b.publish().unwrap();
    }
}

#[test]
fn one_that_is_condemned_fails_alone_and_is_told_with_its_bytes() {
    let mut b = bench(12, BOTH);
    (0..3).for_each(|head| assert_eq!(b.submit(), Some(head)));
    b.publish().unwrap();
    assert!(b.shadow.condemn(1, &mut Dma::new(&b.ram), &Block).is_none(), "a process has it");
    b.shadow.detach_device();
    let before = b.snapshot();
    let (specimen, interrupt) = b.shadow.condemn(1, &mut Dma::new(&b.ram), &Block).unwrap();
    assert!(interrupt && b.shadow.condemn(1, &mut Dma::new(&b.ram), &Block).is_none());
    b.assert_only_changed(&before, &BTreeSet::from([1]));
    assert_eq!(b.collect(), [(1, 1)]);
    b.waiting.remove(&1);
    let room: u32 = b.writable[1].iter().map(|(_, length)| length).sum();
    assert_eq!((specimen.head, specimen.in_bytes, specimen.tail_bytes), (vec![2; 16], u64::from(room) - 1, 1));
    assert!(specimen.out_bytes == specimen.data.len() as u64 && specimen.data.iter().all(|byte| *byte == 2));
    b.attach_device();
    b.publish().unwrap();
    while b.work() {}
    b.harvest().unwrap();
    assert_eq!(check_completions(&mut b), 2);
    // What a reset made nobody's is not there to be condemned.
    b.submit();
    b.publish().unwrap();
    b.shadow.detach_device();
    b.shadow.reset_guest();
    assert!((0..CHAINS).all(|number| b.shadow.condemn(number, &mut Dma::new(&b.ram), &Block).is_none()));
}
