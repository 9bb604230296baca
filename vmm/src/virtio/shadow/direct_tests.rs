//! A device that maps guest RAM: the rings are checked as ever, and the engine is told of all that it may have written.

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::bench::{BOTH, Bench};
use super::*;
use crate::mmu::FRAME_SIZE;

fn bench(seed: u64) -> Bench {
    Bench::new(SmallRng::seed_from_u64(seed), BOTH, Transfer::Direct)
}

/// The frames of every buffer that the device may write for what the driver waits for.
fn frames(b: &Bench) -> Vec<u64> {
    let buffers = b.waiting.iter().flat_map(|head| &b.writable[usize::from(*head)]);
    let mut frames: Vec<u64> = buffers
        .flat_map(|(at, length)| (at & !(FRAME_SIZE as u64 - 1)..at + u64::from(*length)).step_by(FRAME_SIZE))
        .collect();
    frames.sort_unstable();
    frames.dedup();
    frames
}

/// Has the engine hold code from all of these frames; `ended` is to note just them.
fn noted(b: &mut Bench, ended: impl FnOnce(&mut Bench, &mut Dma<'_>)) {
    let (frames, ram) = (frames(b), b.ram.clone());
    frames.iter().for_each(|frame| ram.mark_code(*frame));
    let mut dma = Dma::new(&ram);
    ended(b, &mut dma);
    let mut found = dma.into_code_frames();
    found.sort_unstable();
    assert_eq!(found, frames);
    frames.iter().for_each(|frame| ram.clear_code(*frame));
}

fn submitted(seed: u64) -> Bench {
    let mut b = bench(seed);
    while b.waiting.len() < 10 {
        b.submit();
    }
    b.publish().unwrap();
    b
}

#[test]
fn what_a_completed_request_may_have_written_is_noted_however_little_the_device_admits() {
    let mut b = submitted(2);
    while let Some((id, _, _)) = b.take() {
        b.give(id.into(), 0);
    }
    noted(&mut b, |b, dma| {
        let mut bounce = Bounce { region: &b.region, pool: &mut b.pool };
        let (harvest, result) = b.shadow.harvest(&mut bounce, dma);
        assert_eq!((harvest.completed, result), (10, Ok(())));
    });
    let mut b = submitted(3);
    let (id, _, writable) = b.take().unwrap();
    let room: u32 = writable.iter().map(|(_, length)| length).sum();
    b.give(id.into(), room + 1);
    assert_eq!(b.harvest(), Err(PeerError::Length(room + 1, room.into())));
}

#[test]
fn what_an_unfinished_request_may_have_written_is_noted_when_it_ends() {
    let mut b = submitted(4);
    b.shadow.detach_device();
    noted(&mut b, |b, dma| {
        assert!(b.shadow.fail_all(dma, &super::super::block::Block));
    });
    // A reset with the process alive: when it is back, or when the process is dropped.
    for dropped in [false, true] {
        let mut b = submitted(5);
        b.shadow.reset_guest();
        assert!(b.shadow.holds_earlier_life());
        noted(&mut b, |b, dma| {
            if dropped {
                b.shadow.detach_device();
            } else {
                while b.work() {}
                b.harvest().unwrap();
            }
            assert!(!b.shadow.holds_earlier_life());
            b.shadow.note_touched(dma);
        });
    }
}
