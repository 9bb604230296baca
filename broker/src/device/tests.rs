use ipc::channel::Channel;
use ipc::control::{FromVmm, Prepare, Start};

use super::*;
use crate::disks::VhostUserBlk;

type Vmm = Channel<FromVmm, ToVmm>;

/// A conversation with a vmm whose guest runs, both ends.
fn running() -> (VmmLink, Vmm) {
    let (mut link, socket) = VmmLink::new("vmm").unwrap();
    let vmm = Vmm::new(socket);
    let prepare = Prepare { memory: 1 << 20, engine: String::new(), cpu: String::new(), log_filter: String::new() };
    link.say(&ToVmm::Prepare(prepare), &[]).unwrap();
    vmm.send(&FromVmm::Ready { landlock_proved: true, missing: vec![] }, &[]).unwrap();
    link.hear(&mut { TURN }).unwrap();
    let (no_reboot, stats, initrd) = (false, false, false);
    let start = Start { command_line: String::new(), no_reboot, stats, started_ns: 0, initrd, devices: vec![] };
    let null = std::fs::File::open("/dev/null").unwrap();
    link.say(&ToVmm::Start(start), &[null.as_fd(), null.as_fd()]).unwrap();
    vmm.send(&FromVmm::Started { protocol: String::new(), engine: String::new(), startup_ns: 0 }, &[]).unwrap();
    link.hear(&mut { TURN }).unwrap();
    (link, vmm)
}

/// A loss that the vmm does not hear of is a guest that waits for ever.
#[test]
fn that_a_device_was_given_up_is_said_again_until_there_is_room() {
    let (mut link, vmm) = running();
    while link.say(&ToVmm::Beat(1), &[]).is_ok() {}
    let (tolerate, quarantine) = (Layers::new(), Quarantine::None);
    let mut device = Device::new(0, "disk0".into(), Source::Foreign(VhostUserBlk::parse("socket=/nowhere").unwrap()));
    device
        .happened(Event::Hopeless, &mut Context { vmm: Some(&mut link), tolerate: &tolerate, quarantine: &quarantine });
    device.turn(Instant::now(), &mut Context { vmm: Some(&mut link), tolerate: &tolerate, quarantine: &quarantine });
    assert!(device.state == State::GivenUp && device.next().is_some(), "it is still to be said");
    let heard = || std::iter::from_fn(|| vmm.try_receive().unwrap()).map(|(message, _)| message);
    assert!(heard().all(|message| message != ToVmm::Abandon { device: 0 }));
    device.turn(Instant::now(), &mut Context { vmm: Some(&mut link), tolerate: &tolerate, quarantine: &quarantine });
    assert_eq!((heard().collect::<Vec<_>>(), device.next()), (vec![ToVmm::Abandon { device: 0 }], None));
}
