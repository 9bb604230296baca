use proptest::prelude::*;

use super::*;
use crate::frame::{decode, encode};
use crate::specimen::Specimen;

fn prepare() -> ToVmm {
    ToVmm::Prepare(Prepare { memory: 512 << 20, engine: "auto".into(), cpu: "max".into(), log_filter: "info".into() })
}

fn start(initrd: bool) -> ToVmm {
    start_with(initrd, &[])
}

fn start_with(initrd: bool, devices: &[DeviceConfig]) -> ToVmm {
    let (command_line, devices) = ("quiet".into(), devices.to_vec());
    ToVmm::Start(Start { command_line, no_reboot: false, stats: true, started_ns: 7, initrd, devices })
}

fn disk(name: &str, bounce: u64) -> DeviceConfig {
    DeviceConfig { name: name.into(), kind: DeviceKind::Disk, bounce, queues: 1, dma: DmaMode::Bounce }
}

fn ready() -> FromVmm {
    FromVmm::Ready { landlock_proved: true, missing: vec![] }
}

fn started() -> FromVmm {
    FromVmm::Started { protocol: "Linux".into(), engine: "interp".into(), startup_ns: 1 }
}

fn ended() -> FromVmm {
    FromVmm::Ended { outcome: Outcome::PowerOff, stats: vec![("a".into(), 1)] }
}

fn record() -> Record {
    Record { severity: crate::telemetry::Severity::Info, text: "x".into(), lost: 0 }
}

fn log() -> FromVmm {
    FromVmm::Log(record())
}

/// Every message of each kind.
fn all() -> (Vec<ToVmm>, Vec<FromVmm>) {
    let to = vec![
        prepare(),
        start_with(true, &[disk("disk0", MIN_BOUNCE)]),
        ToVmm::PowerButton,
        ToVmm::Beat(1),
        ToVmm::Replace { device: 0, fault: true },
        ToVmm::Abandon { device: 15 },
        ToVmm::Stop,
    ];
    let rebooted = FromVmm::Rebooted { cause: "reset".into() };
    let device = FromVmm::Device { device: 0, connection: 1, event: DeviceEvent::Lost("it hung up".into()) };
    (to, vec![ready(), started(), rebooted, device, FromVmm::Alive(1), log(), ended()])
}

/// Puts a conversation into `phase` by the only way there is.
fn at(phase: Phase) -> Conversation {
    let mut c = Conversation::default();
    let steps: [&dyn Fn(&mut Conversation); 5] = [
        &|c| c.pass(&prepare()).unwrap(),
        &|c| c.pass(&ready()).unwrap(),
        &|c| c.pass(&start(false)).unwrap(),
        &|c| c.pass(&started()).unwrap(),
        &|c| c.pass(&ended()).unwrap(),
    ];
    for step in steps {
        if c.phase() == phase {
            break;
        }
        step(&mut c);
    }
    assert_eq!(c.phase(), phase);
    c
}

const PHASES: [Phase; 6] =
    [Phase::New, Phase::Confining, Phase::Confined, Phase::Starting, Phase::Running, Phase::Ended];

/// The whole table, written out a second time by hand: a letter for each message that is permitted.
#[test]
fn each_message_is_permitted_where_it_belongs_and_nowhere_else() {
    let (to, from) = all();
    let letters = ["P", "S", "b", "h", "p", "g", "x", "R", "s", "r", "d", "a", "l", "E"];
    let permitted = PHASES.map(|phase| {
        let to = to.iter().map(|m| at(phase).pass(m).is_ok());
        let from = from.iter().map(|m| at(phase).pass(m).is_ok());
        to.chain(from).zip(letters).filter(|(ok, _)| *ok).map(|(_, letter)| letter).collect::<String>()
    });
    assert_eq!(permitted, ["P", "xRlE", "SxlE", "bhpgxsdalE", "bhpgxrdalE", ""]);
}

#[test]
fn a_message_out_of_state_says_so_and_changes_nothing() {
    let mut c = at(Phase::Running);
    let error = c.pass(&ready()).unwrap_err().to_string();
    assert_eq!(error, "Ready is not permitted while the process works");
    assert_eq!(c.phase(), Phase::Running);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let prepare = |memory| {
        ToVmm::Prepare(Prepare { memory, engine: String::new(), cpu: String::new(), log_filter: String::new() })
    };
    for memory in [0, 4096, (1 << 20) + 1, MAX_MEMORY + 4096, u64::MAX] {
        assert!(prepare(memory).validate().is_err(), "{memory}");
    }
    assert!(prepare(MIN_MEMORY).validate().is_ok() && prepare(MAX_MEMORY).validate().is_ok());
    let long = "x".repeat(MAX_TEXT + 1);
    assert!(FromVmm::Rebooted { cause: long.clone() }.validate().is_err());
    assert!(FromVmm::Ended { outcome: Outcome::Reset(long.clone()), stats: vec![] }.validate().is_err());
    assert!(FromVmm::Ended { outcome: Outcome::PowerOff, stats: vec![(long, 0)] }.validate().is_err());
    let many = vec![(String::new(), 0); MAX_COUNTERS + 1];
    assert!(FromVmm::Ended { outcome: Outcome::PowerOff, stats: many }.validate().is_err());
}

#[test]
fn a_card_has_an_address_of_its_own_and_so_many_orphans() {
    let attach = |mac, orphans| ToDevice::Attach(Attach { mac, orphans }).validate();
    let orphan = (40_000, std::net::SocketAddrV4::new(crate::flow::GATEWAY, 80));
    assert_eq!(attach([2, 0, 0, 0, 0, 1], vec![orphan; crate::flow::MAX_FLOWS]), Ok(()));
    assert!(attach([2, 0, 0, 0, 0, 1], vec![orphan; crate::flow::MAX_FLOWS + 1]).unwrap_err().contains("257"));
    assert!(attach([3, 0, 0, 0, 0, 1], Vec::new()).unwrap_err().contains("group"));
}

#[test]
fn devices_that_make_no_sense_are_refused() {
    let refused = |disks: &[DeviceConfig]| start_with(false, disks).validate().unwrap_err();
    let most: Vec<DeviceConfig> = (0..MAX_DEVICES).map(|index| disk(&index.to_string(), MAX_BOUNCE)).collect();
    assert_eq!(start_with(true, &most).validate(), Ok(()));
    assert!(refused(&[&most[..], &[disk("one more", MIN_BOUNCE)]].concat()).contains("17 devices"));
    assert!(refused(&[disk("a", MIN_BOUNCE), disk("a", MIN_BOUNCE)]).contains("distinct"));
    assert!(refused(&[disk("", MIN_BOUNCE)]).contains("32 bytes"));
    assert!(refused(&[disk(&"x".repeat(MAX_NAME + 1), MIN_BOUNCE)]).contains("32 bytes"));
    for bounce in [0, 4096, MIN_BOUNCE + 1, MAX_BOUNCE + 4096, u64::MAX] {
        assert!(refused(&[disk("a", bounce)]).contains("bounce"), "{bounce}");
    }
    let queues = |queues| DeviceConfig { queues, ..disk(&queues.to_string(), MIN_BOUNCE) };
    assert!(refused(&[queues(0)]).contains("0 queues") && refused(&[queues(17)]).contains("17 queues"));
    assert_eq!(start_with(false, &[queues(16), queues(15), queues(14), queues(13), queues(6)]).validate(), Ok(()));
    assert!(refused(&[queues(16), queues(15), queues(14), queues(13), queues(7)]).contains("65 queues in all"));
    let long = "x".repeat(MAX_TEXT + 1);
    let device = |device, event| FromVmm::Device { device, connection: 0, event }.validate();
    assert!(device(15, DeviceEvent::Restored).is_ok() && device(16, DeviceEvent::Restored).is_err());
    assert!(device(0, DeviceEvent::Lost(long.clone())).is_err());
    assert!(device(0, DeviceEvent::NeedsReset(long.clone())).is_err());
    let request = |what| DeviceEvent::Quarantined(Box::new(Specimen { what, ..Specimen::default() }));
    assert!(device(0, request("a read".into())).is_ok() && device(0, request(long)).is_err());
    assert!(
        ToVmm::Replace { device: 16, fault: false }.validate().is_err()
            && ToVmm::Abandon { device: 16 }.validate().is_err()
    );
}

#[test]
fn descriptors_are_those_that_the_message_names() {
    assert_eq!((start(false).descriptors(), start(true).descriptors()), (2, 3));
    let disks = [disk("disk0", MIN_BOUNCE), disk("disk1", MAX_BOUNCE)];
    assert_eq!((start_with(false, &disks[..1]).descriptors(), start_with(true, &disks).descriptors()), (3, 5));
    let (to, from) = all();
    let with = |m: &&ToVmm| matches!(m, ToVmm::Start(_) | ToVmm::Replace { .. });
    assert!(to.iter().filter(|m| !with(m)).all(|m| m.descriptors() == 0));
    assert_eq!(ToVmm::Replace { device: 3, fault: false }.descriptors(), 1);
    assert!(from.iter().all(|m| m.descriptors() == 0));
}

/// As above, of a device's table.
#[test]
fn a_device_is_told_and_tells_what_belongs_to_its_state() {
    let serve = |serial: &str, queues| {
        let (format, cache, serial) = (Format::Raw, Cache::None, serial.into());
        ToDevice::Serve(Serve { format, cache, read_only: true, serial, queues })
    };
    let prepare = ToDevice::Prepare { log_filter: "info".into() };
    let ready = FromDevice::Ready { landlock_proved: true, missing: vec![] };
    let serving = FromDevice::Serving { sectors: 1 };
    let (failed, log) = (FromDevice::Failed("why".into()), FromDevice::Log(record()));
    let at = |steps: usize| {
        let mut c = Conversation::default();
        let all: [&dyn Fn(&mut Conversation); 5] = [
            &|c| c.pass(&prepare).unwrap(),
            &|c| c.pass(&ready).unwrap(),
            &|c| c.pass(&serve("", 1)).unwrap(),
            &|c| c.pass(&serving).unwrap(),
            &|c| c.pass(&failed).unwrap(),
        ];
        all[..steps].iter().for_each(|step| step(&mut c));
        c
    };
    let to = [("P", prepare.clone()), ("S", serve("", 1)), ("h", ToDevice::Beat(1)), ("z", ToDevice::Resize)];
    let from =
        [("R", ready.clone()), ("s", serving.clone()), ("a", FromDevice::Alive(1)), ("l", log), ("F", failed.clone())];
    let permitted: Vec<String> = (0..=5)
        .map(|steps| {
            let to = to.iter().filter(|(_, m)| at(steps).pass(m).is_ok()).map(|(letter, _)| *letter);
            to.chain(from.iter().filter(|(_, m)| at(steps).pass(m).is_ok()).map(|(letter, _)| *letter)).collect()
        })
        .collect();
    assert_eq!(permitted, ["P", "RlF", "SlF", "hsalF", "hzalF", ""]);
    assert_eq!((serve("", 1).descriptors(), prepare.descriptors(), failed.descriptors()), (2, 0, 0));
    assert!(serve(&"x".repeat(MAX_SERIAL), 16).validate().is_ok());
    assert!(serve(&"x".repeat(MAX_SERIAL + 1), 1).validate().is_err());
    assert!(serve("", 0).validate().is_err() && serve("", 17).validate().is_err());
    assert!(FromDevice::Failed("x".repeat(MAX_TEXT + 1)).validate().is_err());
}

proptest! {
    /// Noise is an error or one of the messages, and never more than that; so is every message with a bit changed.
    #[test]
    fn noise_never_passes_for_more_than_it_is(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = decode::<FromVmm>(&bytes, 0) {
            let _ = message.validate();
            let mut c = at(Phase::Confining);
            let permitted = c.pass(&message).is_ok();
            prop_assert_eq!(permitted, matches!(message, FromVmm::Ready { .. } | FromVmm::Log(_) | FromVmm::Ended { .. }));
        }
    }

    #[test]
    fn a_changed_bit_is_an_error_or_another_message(which in 0usize..7, place in any::<proptest::sample::Index>(), bit in 0u8..8) {
        let message = &all().1[which];
        let mut bytes = encode(message, 3).unwrap();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        if let Ok(other) = decode::<FromVmm>(&bytes, 3) {
            prop_assert_ne!(&other, message);
        }
    }

    /// No order of messages whatever brings a conversation back from its end, or to a start without being ready.
    #[test]
    fn no_order_of_messages_skips_a_state(order in proptest::collection::vec((any::<bool>(), 0usize..7), 0..40)) {
        let (to, from) = all();
        let mut c = Conversation::default();
        let place = |c: &Conversation| PHASES.iter().position(|p| *p == c.phase()).unwrap();
        for (ours, which) in order {
            let before = place(&c);
            let ok = if ours { c.pass(&to[which % to.len()]).is_ok() } else { c.pass(&from[which]).is_ok() };
            let after = place(&c);
            let ends = PHASES[after] == Phase::Ended;
            prop_assert!(after == before || (ok && (after == before + 1 || ends)), "{before} to {after}");
        }
    }
}
