//! All devices of a running machine: what the broker's loop waits for on their behalf, and whom it passes news on to.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ipc::control::{DeviceEvent, DmaMode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use policy::Layers;
use serde_json::Value;

use crate::device::{Context, Device};
use crate::inspect;
use crate::link::VmmLink;
use crate::nic::flows::{End, Flows};
use crate::quarantine::Quarantine;

/// How long processes may take to end after their vmm, before they are killed.
const GRACE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Devices {
    devices: Vec<Device>,
    tolerate: Layers,
    quarantine: Quarantine,
    /// The machine is at its end: who goes is not replaced.
    retired: bool,
}

/// What of a device's process is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It has ended.
    End,
    /// It has said something.
    Link,
    /// It has written to standard error.
    Words,
    /// Its way out has something.
    Flows(End),
}

impl Devices {
    /// Takes over devices that are served.
    pub fn new(devices: Vec<Device>, tolerate: Layers, quarantine: Quarantine) -> Self {
        Self { devices, tolerate, quarantine, retired: false }
    }

    /// What is to be waited for: device, part, descriptor. All are for input.
    pub fn sources(&self) -> Vec<(usize, Part, BorrowedFd<'_>)> {
        let mut sources = Vec::new();
        if self.retired {
            return sources;
        }
        for (index, back_end) in self.devices.iter().enumerate().filter_map(|(i, d)| Some((i, d.back_end()?))) {
            sources.push((index, Part::End, back_end.process.pidfd()));
            if back_end.open {
                sources.push((index, Part::Link, back_end.link.as_fd()));
            }
            if back_end.process.words.open() {
                sources.push((index, Part::Words, back_end.process.words.as_fd()));
            }
            let flows = back_end.flows.iter().flat_map(Flows::sources);
            sources.extend(flows.map(|(end, fd)| (index, Part::Flows(end), fd)));
        }
        sources
    }

    /// Serves one part of device `index`.
    pub fn serve(&mut self, index: usize, part: Part, vmm: &mut VmmLink) {
        let Some(device) = self.devices.get_mut(index).filter(|_| !self.retired) else { return };
        let mut context = Context { vmm: Some(vmm), tolerate: &self.tolerate, quarantine: &self.quarantine };
        match part {
            Part::End => device.exited(&mut context),
            Part::Link => device.hear(&mut context),
            Part::Words => device.read_words(),
            Part::Flows(end) => device.serve_flows(end),
        }
    }

    /// The vmm has news of device number `number`.
    pub fn reported(&mut self, number: u16, connection: u64, event: DeviceEvent, vmm: &mut VmmLink) {
        if let Some(device) = self.devices.get_mut(usize::from(number)).filter(|_| !self.retired) {
            let mut context = Context { vmm: Some(vmm), tolerate: &self.tolerate, quarantine: &self.quarantine };
            device.reported(connection, event, &mut context);
        }
    }

    /// The operator wants another process behind the device called `name`. False if there is none of this name.
    pub fn restart(&mut self, name: &str, vmm: &mut VmmLink) -> bool {
        let Some(device) = self.devices.iter_mut().find(|device| device.name == name) else { return false };
        device.restart(&mut Context { vmm: Some(vmm), tolerate: &self.tolerate, quarantine: &self.quarantine });
        true
    }

    /// The image of the device called `name` has another size. Why nobody can be told, if so.
    pub fn resize(&mut self, name: &str) -> Result<(), String> {
        let device = self.devices.iter_mut().find(|device| device.name == name);
        device.ok_or_else(|| format!("the machine has no device called {name}"))?.resize()
    }

    /// What is to be seen of the devices, and of their processes.
    pub fn report(&self) -> (Vec<Value>, Vec<Value>) {
        let process = |d: &Device| {
            let shared = d.config().dma == DmaMode::Shared;
            Some(inspect::process(&d.name, d.role(), d.back_end()?.process.pid(), shared))
        };
        (self.devices.iter().map(Device::report).collect(), self.devices.iter().filter_map(process).collect())
    }

    /// Does what time demands.
    pub fn turn(&mut self, now: Instant, vmm: &mut VmmLink) {
        for device in self.devices.iter_mut().filter(|_| !self.retired) {
            device.turn(now, &mut Context { vmm: Some(vmm), tolerate: &self.tolerate, quarantine: &self.quarantine });
        }
    }

    /// When to call [`Self::turn`] at the latest.
    pub fn next(&self) -> Option<Instant> {
        self.devices.iter().filter(|_| !self.retired).filter_map(Device::next).min()
    }

    /// The machine is at its end.
    pub fn retire(&mut self) {
        self.retired = true;
    }
}

impl Drop for Devices {
    /// With the vmm their connections have ended, so they end by themselves; what does not is killed.
    fn drop(&mut self) {
        let until = Instant::now() + GRACE;
        for device in &mut self.devices {
            let Some(back_end) = device.back_end() else { continue };
            let left = until.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            // Whatever comes of it, dropping the process kills and waits.
            let _ = poll(&mut [PollFd::new(back_end.process.pidfd(), PollFlags::POLLIN)], timeout);
            device.read_last_words();
        }
    }
}
