//! A device, and a guest, that write garbage wherever they can reach.

use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::super::memory::Shared;
use super::bench::{AVAIL, BOTH, Bench, DESCRIPTORS, INDIRECT, SIZE, USED};
use super::tests::check_completions;
use super::*;
use crate::mmu::GuestRam;

fn bench(seed: u64, features: u64) -> Bench {
    Bench::new(SmallRng::seed_from_u64(seed), features, Transfer::Copied)
}

/// A device that writes garbage anywhere it can, between honest steps, for many lives: RAM outside the buffers that it
/// may write never changes, and after it is replaced by an honest one every request completes once.
#[test]
fn a_hostile_device_reaches_only_what_it_was_given() {
    for seed in 0..6 {
        let mut b = bench(100 + seed, BOTH);
        let mut dropped = 0;
        for _ in 0..120 {
            for _ in 0..b.rng.random_range(0..8) {
                b.submit();
            }
            b.publish().unwrap();
            let (before, heads) = (b.snapshot(), b.waiting.clone());
            for _ in 0..b.rng.random_range(0..6) {
                scribble(&mut b);
            }
            let result = b.harvest();
            b.assert_only_changed(&before, &heads);
            // Whatever the buffers hold now, each head comes back at most once.
            for (head, _) in b.collect() {
                assert!(b.waiting.remove(&head), "{head}");
            }
            if result.is_err() {
                dropped += 1;
                b.shadow.detach_device();
                b.attach_device();
            }
        }
        assert!(dropped > 10, "{dropped}");
        b.shadow.detach_device();
        b.attach_device();
        while !b.waiting.is_empty() {
            b.publish().unwrap();
            while b.work() {}
            b.harvest().unwrap();
            check_completions(&mut b);
        }
    }
}

/// One thing that a hostile device does to its region.
pub fn scribble(b: &mut Bench) {
    let (control, size) = (Control::of(0), b.region.size());
    match b.rng.random_range(0..6) {
        0 => {
            let index = b.region.load_u16(control.used + 2).unwrap();
            let step = b.rng.random_range(0..4);
            b.region.store_u16(control.used + 2, index.wrapping_add(step)).unwrap();
        }
        1 => {
            let (id, length) = (b.rng.random_range(0..300), b.rng.random_range(0..9000));
            b.give(id, length);
        }
        2 => {
            let (chain, length) = (b.rng.random_range(0..12), b.rng.random_range(0..3000));
            b.give(4 * chain, length);
        }
        3 => {
            let at = control.used + 2 * b.rng.random_range(0..1030);
            let value: u16 = b.rng.random();
            b.region.store_u16(at, value).unwrap();
        }
        _ => {
            let mut bytes = [0; 256];
            b.rng.fill(&mut bytes[..]);
            let at = if b.rng.random() { b.rng.random_range(0..0x3f00) } else { b.rng.random_range(0..size - 256) };
            b.region.write(at, &bytes).unwrap();
        }
    }
}

/// One round with a hostile guest: whatever the queue makes of its memory, the device is only shown places in its
/// region (which the bench asserts), and the queue goes on after a reset. True if the guest was found out.
fn survive(b: &mut Bench) -> bool {
    let head = b.rng.random_range(0..SIZE);
    if b.rng.random() {
        b.frame(head);
    }
    b.offer(head);
    let error = b.publish().is_err();
    if error {
        b.shadow.reset_guest();
        b.attach_guest();
    }
    while let Some((id, _, writable)) = b.take() {
        b.give(id.into(), writable.iter().map(|(_, length)| length).sum());
    }
    b.harvest().unwrap();
    assert_eq!(b.shadow.outstanding(), 0);
    error
}

#[test]
fn a_hostile_guest_breaks_nothing_but_itself() {
    let mut found = 0;
    for seed in 0..8 {
        let mut b = bench(200 + seed, if seed % 2 == 0 { BOTH } else { 0 });
        for _ in 0..1000 {
            for _ in 0..b.rng.random_range(0..40) {
                garbage(&b.ram, &mut b.rng);
            }
            found += usize::from(survive(&mut b));
        }
    }
    assert!((1000..7900).contains(&found), "{found} of 8000 rounds ended with an error");
}

#[test]
fn a_guest_that_writes_while_it_is_read_breaks_nothing_either() {
    for seed in 0..4 {
        let mut b = bench(300 + seed, BOTH);
        let (ram, stop) = (b.ram.clone(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut rng = SmallRng::seed_from_u64(seed);
                while !stop.load(Ordering::Relaxed) {
                    garbage(&ram, &mut rng);
                }
            });
            for _ in 0..3000 {
                survive(&mut b);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}

/// One thing that a hostile guest does to its tables and rings.
fn garbage(ram: &GuestRam, rng: &mut SmallRng) {
    let table = if rng.random() { DESCRIPTORS } else { INDIRECT };
    match rng.random_range(0..4) {
        0 | 1 => {
            // A descriptor that may well be valid.
            let address: u64 = if rng.random_ratio(1, 8) { rng.random() } else { rng.random_range(0..0x7f_0000) };
            let length: u32 = if rng.random_ratio(1, 8) { rng.random() } else { rng.random_range(0..0x8000) };
            let (flags, next): (u16, u16) = (rng.random_range(0..8), rng.random_range(0..SIZE + 2));
            let word =
                u128::from(address) | u128::from(length) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
            let at = table + 16 * rng.random_range(0..u64::from(SIZE));
            assert!(GuestRam::write(ram, at, &word.to_le_bytes()));
        }
        2 => drop(ram.store_u16(AVAIL + 2 * rng.random_range(0..u64::from(SIZE) + 3), rng.random())),
        _ => drop(ram.store_u16(USED + 2 * rng.random_range(0..64), rng.random())),
    }
}
