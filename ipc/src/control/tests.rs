use proptest::prelude::*;

use super::*;
use crate::frame::{decode, encode};

fn prepare() -> ToVmm {
    ToVmm::Prepare(Prepare { memory: 512 << 20, engine: "auto".into(), cpu: "max".into(), log_filter: "info".into() })
}

fn start(initrd: bool) -> ToVmm {
    start_with(initrd, &[])
}

fn start_with(initrd: bool, disks: &[DiskConfig]) -> ToVmm {
    let (command_line, disks) = ("quiet".into(), disks.to_vec());
    ToVmm::Start(Start { command_line, no_reboot: false, stats: true, started_ns: 7, initrd, disks })
}

fn disk(name: &str, bounce: u64) -> DiskConfig {
    DiskConfig { name: name.into(), bounce }
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

fn log() -> FromVmm {
    FromVmm::Log(Record { severity: crate::telemetry::Severity::Info, text: "x".into(), lost: 0 })
}

/// Every message of each kind.
fn all() -> (Vec<ToVmm>, Vec<FromVmm>) {
    let to = vec![
        prepare(),
        start_with(true, &[disk("disk0", MIN_BOUNCE)]),
        ToVmm::PowerButton,
        ToVmm::Beat(1),
        ToVmm::Stop,
    ];
    let rebooted = FromVmm::Rebooted { cause: "reset".into() };
    let device = FromVmm::Device { name: "disk0".into(), event: DeviceEvent::Lost("it hung up".into()) };
    (to, vec![ready(), started(), rebooted, device, FromVmm::Alive(1), log(), ended()])
}

/// Puts a conversation into `phase` by the only way there is.
fn at(phase: Phase) -> Conversation {
    let mut c = Conversation::default();
    let steps: [&dyn Fn(&mut Conversation); 5] = [
        &|c| c.to_vmm(&prepare()).unwrap(),
        &|c| c.from_vmm(&ready()).unwrap(),
        &|c| c.to_vmm(&start(false)).unwrap(),
        &|c| c.from_vmm(&started()).unwrap(),
        &|c| c.from_vmm(&ended()).unwrap(),
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
    let letters = ["P", "S", "b", "h", "x", "R", "s", "r", "d", "a", "l", "E"];
    let permitted = PHASES.map(|phase| {
        let to = to.iter().map(|m| at(phase).to_vmm(m).is_ok());
        let from = from.iter().map(|m| at(phase).from_vmm(m).is_ok());
        to.chain(from).zip(letters).filter(|(ok, _)| *ok).map(|(_, letter)| letter).collect::<String>()
    });
    assert_eq!(permitted, ["P", "xRlE", "SxlE", "bhxsdalE", "bhxrdalE", ""]);
}

#[test]
fn a_message_out_of_state_says_so_and_changes_nothing() {
    let mut c = at(Phase::Running);
    let error = c.from_vmm(&ready()).unwrap_err().to_string();
    assert_eq!(error, "Ready is not permitted while the guest runs");
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
fn disks_that_make_no_sense_are_refused() {
    let refused = |disks: &[DiskConfig]| start_with(false, disks).validate().unwrap_err();
    let most: Vec<DiskConfig> = (0..MAX_DISKS).map(|index| disk(&index.to_string(), MAX_BOUNCE)).collect();
    assert_eq!(start_with(true, &most).validate(), Ok(()));
    assert!(refused(&[&most[..], &[disk("one more", MIN_BOUNCE)]].concat()).contains("17 disks"));
    assert!(refused(&[disk("a", MIN_BOUNCE), disk("a", MIN_BOUNCE)]).contains("distinct"));
    assert!(refused(&[disk("", MIN_BOUNCE)]).contains("32 bytes"));
    assert!(refused(&[disk(&"x".repeat(MAX_NAME + 1), MIN_BOUNCE)]).contains("32 bytes"));
    for bounce in [0, 4096, MIN_BOUNCE + 1, MAX_BOUNCE + 4096, u64::MAX] {
        assert!(refused(&[disk("a", bounce)]).contains("bounce"), "{bounce}");
    }
    let long = "x".repeat(MAX_TEXT + 1);
    let device = |name: &str, event| FromVmm::Device { name: name.into(), event }.validate();
    assert!(device("disk0", DeviceEvent::Restored).is_ok() && device(&long, DeviceEvent::Restored).is_err());
    assert!(device("disk0", DeviceEvent::Lost(long.clone())).is_err());
    assert!(device("disk0", DeviceEvent::NeedsReset(long)).is_err());
}

#[test]
fn descriptors_are_those_that_the_message_names() {
    assert_eq!((start(false).descriptors(), start(true).descriptors()), (2, 3));
    let disks = [disk("disk0", MIN_BOUNCE), disk("disk1", MAX_BOUNCE)];
    assert_eq!((start_with(false, &disks[..1]).descriptors(), start_with(true, &disks).descriptors()), (3, 5));
    let (to, from) = all();
    assert!(to.iter().filter(|m| !matches!(m, ToVmm::Start(_))).all(|m| m.descriptors() == 0));
    assert!(from.iter().all(|m| m.descriptors() == 0));
}

proptest! {
    /// Noise is an error or one of the messages, and never more than that; so is every message with a bit changed.
    #[test]
    fn noise_never_passes_for_more_than_it_is(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = decode::<FromVmm>(&bytes, 0) {
            let _ = message.validate();
            let mut c = at(Phase::Confining);
            let permitted = c.from_vmm(&message).is_ok();
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
            let ok = if ours { c.to_vmm(&to[which % to.len()]).is_ok() } else { c.from_vmm(&from[which]).is_ok() };
            let after = place(&c);
            let ends = PHASES[after] == Phase::Ended;
            prop_assert!(after == before || (ok && (after == before + 1 || ends)), "{before} to {after}");
        }
    }
}
