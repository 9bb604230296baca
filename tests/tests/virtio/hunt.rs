//! Processes that crash at certain requests, and a guest that resets in the middle of the hunt for these.

use std::time::Duration;

use tests::vhost::disk::Disk;
use tests::vhost::driver::{Driver, SLOTS, connect};
use vmm::virtio::DeviceEvent;

use super::{Outcome, SIZE, attach};

/// Serves until nothing is under way or `most` processes have crashed, with another for each of them; what came back, and how
/// many crashed. Whether that was their own fault is `fault`.
fn finish_by_many(driver: &mut Driver, disk: &Disk, fault: bool, most: usize) -> (Vec<(u16, u8, u8)>, usize) {
    let lost = |d: &Driver| d.events().iter().filter(|event| matches!(event, DeviceEvent::Lost(_))).count();
    let (mut found, first) = (Vec::new(), lost(driver));
    for crashes in 0..most {
        found.extend(driver.until(|d, _| d.waiting.is_empty() || lost(d) > first + crashes));
        if driver.waiting.is_empty() {
            return (found, crashes);
        }
        driver.device.replace(connect(disk.clone()).unwrap().0, fault);
    }
    (found, most)
}

/// Sectors of the requests that were set aside, and among how many each was found.
fn set_aside(driver: &Driver) -> Vec<(u8, u16)> {
    let events = driver.events();
    let specimens = events.iter().filter_map(|e| if let DeviceEvent::Quarantined(s) = e { Some(s) } else { None });
    specimens.map(|specimen| (specimen.head[8] / 16 + specimen.head[9] * 16, specimen.among)).collect()
}

#[test]
fn requests_that_crash_their_process_fail_and_no_others() -> Outcome {
    let poisons: [&[u16]; 5] = [&[0], &[17], &[SLOTS - 1], &[3, 30], &[0, 1, 2, 40]];
    for poison in poisons {
        let disk = Disk::new(SIZE);
        let (mut driver, _thread) = attach(&disk)?;
        driver.start(true);
        disk.switch(|s| s.poison = poison.iter().map(|slot| 16 * u64::from(*slot)).collect());
        (0..SLOTS).for_each(|slot| assert!(driver.submit(slot, Some(9))));
        let (found, crashes) = finish_by_many(&mut driver, &disk, true, 99);
        assert_eq!(found.len(), usize::from(SLOTS));
        assert!(found.iter().all(|(slot, status, _)| (*status != 0) == poison.contains(slot)), "{poison:?}: {found:?}");
        assert!(crashes <= 1 + 2 * poison.len(), "{crashes}");
        let mut named = set_aside(&driver);
        named.sort_unstable();
        assert_eq!(named.iter().map(|(slot, _)| u16::from(*slot)).collect::<Vec<_>>(), poison);
        assert!(named.iter().all(|(_, among)| (1..=SLOTS).contains(among)), "{named:?}");
        // The next one is served as if nothing had been.
        disk.switch(|s| s.poison.clear());
        driver.submit(5, Some(8));
        assert_eq!(driver.finish().iter().map(|(_, status, _)| *status).collect::<Vec<_>>(), [0]);
    }
    Ok(())
}

#[test]
fn a_hunt_survives_kills_and_ends_with_a_reset_or_when_the_disk_is_given_up() -> Outcome {
    let disk = Disk::new(SIZE);
    let (mut driver, _thread) = attach(&disk)?;
    driver.start(true);
    disk.switch(|s| s.poison = vec![16 * 7]);
    let submit = |driver: &mut Driver| (0..20).for_each(|slot| assert!(driver.submit(slot, None)));
    submit(&mut driver);
    // However often, when it was nobody's fault: and the request is still there.
    assert_eq!(finish_by_many(&mut driver, &disk, false, 6).1, 6);
    assert!(driver.waiting.contains_key(&7) && set_aside(&driver).is_empty());
    // In the middle of a hunt the guest resets, and gets no answer to what it asked for before.
    for crashes in 1..3 {
        let (_, crashed) = finish_by_many(&mut driver, &disk, true, crashes);
        assert_eq!(crashed, crashes);
        driver.reset();
        let before = driver.snapshot();
        while driver.serve(Duration::from_millis(20)) {}
        assert!(driver.snapshot() == before && set_aside(&driver).is_empty());
        driver.start(true);
        driver.submit(1, None);
        assert_eq!(driver.finish(), [(1, 0, 0)]);
        submit(&mut driver);
    }
    // Given up: all that is out fails, whoever is suspect, and a later process begins anew.
    finish_by_many(&mut driver, &disk, true, 1);
    driver.device.abandon();
    assert!(driver.finish().iter().all(|(slot, status, _)| *slot < 7 || *status != 0));
    disk.switch(|s| s.poison.clear());
    driver.device.replace(connect(disk.clone())?.0, true);
    submit(&mut driver);
    assert!(driver.finish().iter().all(|(_, status, _)| *status == 0));
    assert!(set_aside(&driver).is_empty());
    Ok(())
}
