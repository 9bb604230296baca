//! A virtio disk as the guest meets it, with back ends that are honest, that die, that stall, and that are hostile.
//!
//! The device model and its front end are the real ones; the guest is a driver at register level, the back ends speak
//! vhost-user from threads of the test.

use std::collections::BTreeSet;
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tests::vhost::disk::Disk;
use tests::vhost::driver::{Driver, SLOTS, connect};
use tests::vhost::hostile::Hostile;
use tests::vhost::session::{Reaction, request};
use vmm::chipset::PciFunction;
use vmm::virtio::DeviceEvent;

#[path = "virtio/hunt.rs"]
mod hunt;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const NEEDS_RESET: u8 = 0x40;
const SIZE: u64 = 1 << 20;

fn attach(disk: &Disk) -> Result<(Driver, JoinHandle<()>), Box<dyn std::error::Error>> {
    let (socket, thread) = connect(disk.clone())?;
    Ok((Driver::new(socket)?, thread))
}

/// Hangs the disk's process up, and waits until the device knows.
fn kill(disk: &Disk, thread: JoinHandle<()>, driver: &mut Driver) {
    let lost = |d: &Driver| d.events().iter().filter(|event| matches!(event, DeviceEvent::Lost(_))).count();
    let before = lost(driver);
    disk.switch(|s| s.hang_up = true);
    thread.join().unwrap();
    driver.until(|driver, _| lost(driver) > before);
    disk.switch(|s| s.hang_up = false);
}

#[test]
fn data_goes_out_and_comes_back_with_either_kind_of_interrupt() -> Outcome {
    for msix in [true, false] {
        let disk = Disk::new(SIZE);
        let (mut driver, _thread) = attach(&disk)?;
        assert_eq!(driver.capacity(), SIZE / 512);
        driver.start(msix);
        for slot in 0..SLOTS {
            driver.submit(slot, Some(slot as u8 + 1));
        }
        assert!(driver.finish().iter().all(|(_, status, _)| *status == 0));
        for slot in 0..SLOTS {
            driver.submit(slot, None);
        }
        let found = driver.finish();
        assert_eq!(found.len(), usize::from(SLOTS));
        assert!(found.iter().all(|(slot, status, data)| (*status, *data) == (0, *slot as u8 + 1)), "{found:?}");
        driver.submit(SLOTS - 1, None);
        driver.finish();
        if msix {
            assert!(driver.messages().iter().all(|data| *data == 101) && !driver.line());
        } else {
            assert!(driver.line() && driver.messages().is_empty());
            assert_eq!((driver.isr(), driver.line(), driver.isr()), (1, false, 0), "reading lets the line go");
        }
    }
    Ok(())
}

#[test]
fn a_dead_process_is_replaced_under_load_and_each_request_completes_once() -> Outcome {
    let (disk, mut rng) = (Disk::new(SIZE), SmallRng::seed_from_u64(1));
    let (mut driver, mut thread) = attach(&disk)?;
    driver.start(true);
    let mut content = vec![0u8; usize::from(SLOTS)];
    for round in 0..40 {
        disk.switch(|s| s.hold = round % 3 == 0);
        let mut writes = BTreeSet::new();
        for _ in 0..rng.random_range(1..30) {
            let (slot, write) = (rng.random_range(0..SLOTS), rng.random::<bool>());
            let fill: u8 = rng.random();
            if driver.submit(slot, write.then_some(fill)) && write {
                content[usize::from(slot)] = fill;
                writes.insert(slot);
            }
        }
        let mut found = if rng.random() { driver.collect() } else { Vec::new() };
        driver.serve(Duration::from_millis(rng.random_range(0..3)));
        kill(&disk, thread, &mut driver);
        disk.switch(|s| s.hold = false);
        let (socket, next) = connect(disk.clone())?;
        driver.device.replace(socket, false);
        thread = next;
        found.extend(driver.finish());
        for (slot, status, data) in found.into_iter().filter(|(slot, ..)| !writes.contains(slot)) {
            assert_eq!((status, data), (0, content[usize::from(slot)]), "slot {slot} in round {round}");
        }
    }
    assert!(driver.events().contains(&DeviceEvent::Restored));
    assert_eq!(driver.status() & NEEDS_RESET, 0);
    Ok(())
}

#[test]
fn after_a_reset_nothing_is_written_and_a_new_life_begins() -> Outcome {
    let disk = Disk::new(SIZE);
    let (mut driver, _thread) = attach(&disk)?;
    driver.start(true);
    driver.submit(0, Some(7));
    driver.finish();
    for _ in 0..20 {
        disk.switch(|s| s.hold = true);
        for slot in 0..10 {
            driver.submit(slot, None);
        }
        driver.serve(Duration::from_millis(20));
        driver.reset();
        let before = driver.snapshot();
        disk.switch(|s| s.hold = false);
        while driver.serve(Duration::from_millis(20)) {}
        assert!(driver.snapshot() == before, "not a byte of what was asked before");
        driver.start(true);
        driver.submit(0, None);
        assert_eq!(driver.finish(), [(0, 0, 7)]);
    }
    assert_eq!(driver.events(), []);
    Ok(())
}

#[test]
fn a_replacement_must_be_able_to_go_on() -> Outcome {
    let disk = Disk::new(SIZE);
    let (mut driver, thread) = attach(&disk)?;
    driver.start(true);
    driver.submit(0, Some(1));
    driver.finish();
    driver.messages();
    // A larger disk is one change of configuration, and nothing else.
    kill(&disk, thread, &mut driver);
    disk.switch(|s| s.size = 2 * SIZE);
    let (socket, thread) = connect(disk.clone())?;
    driver.device.replace(socket, false);
    driver.submit(0, None);
    assert_eq!(driver.finish(), [(0, 0, 1)]);
    assert_eq!(driver.messages().iter().filter(|data| **data == 100).count(), 1);
    assert_eq!((driver.capacity(), driver.status()), (2 * SIZE / 512, 0xf));
    // One that lacks FLUSH, which the driver uses, is not what the driver knows.
    kill(&disk, thread, &mut driver);
    disk.switch(|s| s.features &= !(1 << 9));
    let (socket, _thread) = connect(disk.clone())?;
    driver.device.replace(socket, false);
    driver.until(|driver, _| driver.status() & NEEDS_RESET != 0);
    assert_eq!(driver.messages(), [100]);
    driver.reset();
    driver.start(true);
    driver.submit(0, None);
    assert_eq!(driver.finish(), [(0, 0, 1)], "and after the reset it goes on without");
    Ok(())
}

/// The region is laid out for the queues of the first process: where a further one would be, there is data.
#[test]
fn a_replacement_with_more_queues_serves_those_that_there_are() -> Outcome {
    let disk = Disk::new(SIZE);
    let (mut driver, thread) = attach(&disk)?;
    driver.start(true);
    kill(&disk, thread, &mut driver);
    disk.switch(|s| s.queues = 4);
    let (socket, _thread) = connect(disk.clone())?;
    driver.device.replace(socket, false);
    // A device that is told of the further queues takes their places for those of the one it serves.
    driver.submit(0, Some(1));
    assert_eq!(driver.finish(), [(0, 0, 1)]);
    driver.reset();
    driver.start(true);
    driver.submit(0, None);
    assert_eq!(driver.finish(), [(0, 0, 1)]);
    Ok(())
}

#[test]
fn a_new_size_is_announced_to_the_guest() -> Outcome {
    let disk = Disk::new(SIZE);
    let (mut driver, _thread) = attach(&disk)?;
    driver.start(true);
    disk.switch(|s| s.size = SIZE / 2);
    driver.until(|driver, _| driver.capacity() == SIZE / 1024);
    assert_eq!(driver.messages(), [100]);
    Ok(())
}

#[test]
fn without_a_process_for_good_requests_fail() -> Outcome {
    let disk = Disk::new(SIZE);
    let (mut driver, thread) = attach(&disk)?;
    driver.start(true);
    disk.switch(|s| s.hold = true);
    for slot in 0..5 {
        driver.submit(slot, None);
    }
    driver.serve(Duration::from_millis(20));
    kill(&disk, thread, &mut driver);
    driver.device.abandon();
    let found = driver.finish();
    assert_eq!(found.len(), 5);
    assert!(found.iter().all(|(_, status, data)| (*status, *data) == (1, 0xdd)), "{found:?}");
    driver.submit(7, None);
    assert_eq!(driver.finish(), [(7, 1, 0xdd)], "what comes later fails, too");
    assert_eq!(driver.status(), 0xf);
    disk.switch(|s| s.hold = false);
    let (socket, _thread) = connect(disk.clone())?;
    driver.device.replace(socket, false);
    driver.submit(7, None);
    assert_eq!(driver.finish(), [(7, 0, 0)]);
    Ok(())
}

#[test]
fn a_handshake_that_stalls_hangs_up_or_makes_no_sense_is_refused() -> Outcome {
    for reaction in [Reaction::Stall, Reaction::HangUp, Reaction::Garbage] {
        let disk = Disk::new(SIZE);
        disk.switch(|s| s.reactions = vec![(request::GET_CONFIG, reaction)]);
        assert!(attach(&disk).is_err(), "{reaction:?}");
    }
    let disk = Disk::new(SIZE);
    disk.switch(|s| s.features &= !(1 << 32));
    assert!(attach(&disk).is_err_and(|error| error.to_string().contains("VERSION_1")));
    Ok(())
}

#[test]
fn a_process_that_stalls_later_is_given_up() -> Outcome {
    for code in [request::SET_VRING_ADDR, request::GET_VRING_BASE] {
        let disk = Disk::new(SIZE);
        let (mut driver, _thread) = attach(&disk)?;
        disk.switch(|s| s.reactions = vec![(code, Reaction::Stall)]);
        driver.start(true);
        if code == request::GET_VRING_BASE {
            driver.submit(0, None);
            driver.finish();
            driver.reset();
        }
        driver.until(|driver, _| !driver.events().is_empty());
        disk.switch(|s| s.reactions.clear());
        let (socket, _thread) = connect(disk.clone())?;
        driver.device.replace(socket, false);
        if code == request::GET_VRING_BASE {
            driver.start(true);
        }
        driver.submit(1, None);
        assert_eq!(driver.finish(), [(1, 0, 0)]);
    }
    Ok(())
}

/// What a process offered may be looked at after its end: it does not come back by that.
#[test]
fn a_process_that_leaves_after_the_handshake_stays_lost() -> Outcome {
    let disk = Disk::new(SIZE);
    let (mut driver, thread) = attach(&disk)?;
    driver.start(true);
    kill(&disk, thread, &mut driver);
    disk.switch(|s| s.reactions = vec![(request::GET_CONFIG, Reaction::Leave)]);
    for round in 0..200 {
        let (socket, thread) = connect(disk.clone())?;
        let before = driver.events().len();
        driver.device.replace(socket, false);
        driver.until(|driver, _| driver.events()[before..].iter().any(|e| matches!(e, DeviceEvent::Lost(_))));
        thread.join().unwrap();
        while driver.serve(Duration::from_millis(1)) {}
        let last = driver.events().pop();
        assert!(matches!(last, Some(DeviceEvent::Lost(_))), "{last:?} in round {round}");
    }
    disk.switch(|s| s.reactions.clear());
    let (socket, _thread) = connect(disk.clone())?;
    driver.device.replace(socket, false);
    driver.submit(0, None);
    assert_eq!(driver.finish(), [(0, 0, 0)]);
    Ok(())
}

/// A hostile driver breaks nothing but its own device, which a reset of the machine mends, and its process is not blamed for it.
#[test]
fn whatever_a_driver_does_the_next_one_has_a_disk() -> Outcome {
    let (disk, mut rng) = (Disk::new(SIZE), SmallRng::seed_from_u64(2));
    let (mut driver, _thread) = attach(&disk)?;
    for round in 0..300 {
        driver.reset();
        driver.start(rng.random());
        let registers = rng.random();
        for _ in 0..rng.random_range(0..200) {
            driver.misbehave(&mut rng, registers);
            // Long enough for the queues to start, now and then.
            if rng.random_ratio(1, 8) {
                driver.serve(Duration::from_millis(rng.random_range(0..4)));
            }
        }
        driver.device.reset();
        driver.reset();
        driver.start(true);
        driver.submit(round % SLOTS, Some(round as u8));
        driver.finish();
        driver.submit(round % SLOTS, None);
        assert_eq!(driver.finish(), [(round % SLOTS, 0, round as u8)]);
        assert!(
            driver.events().iter().all(|event| matches!(event, DeviceEvent::NeedsReset(_))),
            "{:?}",
            driver.events()
        );
    }
    assert!(!driver.events().is_empty(), "it was never found out");
    Ok(())
}

/// Hostile processes, one after the other: the guest's memory outside its requests never changes, each request comes
/// back at most once, and an honest process picks up what they left.
#[test]
fn hostile_processes_reach_nothing_and_keep_nothing() -> Outcome {
    for seed in 0..20 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = Disk::new(SIZE);
        let (mut driver, thread) = attach(&disk)?;
        driver.start(seed % 2 == 0);
        kill(&disk, thread, &mut driver);
        for life in 0..5 {
            let (socket, thread) = connect(Hostile::new(1000 * seed + life, 40))?;
            driver.device.replace(socket, false);
            while !thread.is_finished() {
                for _ in 0..rng.random_range(0..5) {
                    driver.submit(rng.random_range(0..SLOTS), rng.random::<bool>().then_some(3));
                }
                let (before, waiting) = (driver.snapshot(), driver.waiting.clone());
                driver.serve(Duration::from_millis(2));
                driver.assert_only_changed(&before, &waiting);
                driver.collect();
                if rng.random_ratio(1, 60) {
                    driver.reset();
                    driver.start(true);
                }
            }
            thread.join().unwrap();
        }
        driver.reset();
        driver.start(true);
        let (socket, _thread) = connect(disk.clone())?;
        driver.device.replace(socket, false);
        driver.submit(0, Some(9));
        assert_eq!(driver.finish(), [(0, 0, 9)]);
        driver.submit(0, None);
        assert_eq!(driver.finish(), [(0, 0, 9)]);
    }
    Ok(())
}
