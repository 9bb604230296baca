//! What a device is, and who serves it.

use ipc::control::DeviceConfig;
use policy::Role;

use super::Device;
use crate::disks::VhostUserBlk;
use crate::images::{self, Image};
use crate::nic::flows::End;
use crate::nic::{self, Nic};

/// See the module.
#[derive(Debug)]
pub enum Source {
    /// A disk: a process of ours, from this image.
    Own(Image),
    /// A disk: somebody else's.
    Foreign(VhostUserBlk),
    /// A network card: a process of ours.
    Nic(Nic),
}

impl Source {
    /// What devices of its kind are called, before their number.
    pub fn stem(&self) -> &'static str {
        if let Self::Nic(_) = self { "nic" } else { "disk" }
    }

    /// The role of its process, if that is ours.
    pub fn role(&self) -> Option<Role> {
        match self {
            Self::Own(_) => Some(Role::DevBlk),
            Self::Nic(_) => Some(Role::DevNet),
            Self::Foreign(_) => None,
        }
    }

    /// What the vmm is told of it.
    pub fn config(&self, name: &str) -> DeviceConfig {
        match self {
            Self::Own(image) => image.disk.config(name),
            Self::Foreign(disk) => disk.config(name),
            Self::Nic(nic) => nic.config(name),
        }
    }

    /// In words.
    pub fn what(&self) -> String {
        match self {
            Self::Own(image) => images::describe(&image.disk),
            Self::Foreign(disk) => format!("served at {}", disk.socket.display()),
            Self::Nic(card) => nic::describe(card),
        }
    }

    /// What the guest gets when there is no process for it, nor to be had.
    pub fn then(&self) -> &'static str {
        match self {
            Self::Own(_) | Self::Foreign(_) => "the guest gets I/O errors from it",
            Self::Nic(_) => "what the guest sends by it is lost",
        }
    }
}

impl Device {
    /// Serves one end of its process's way out.
    pub fn serve_flows(&mut self, end: End) {
        if let Some(flows) = self.back_end.as_mut().and_then(|back_end| back_end.flows.as_mut()) {
            flows.serve(end);
        }
    }

    /// What its process is called among roles.
    pub fn role(&self) -> &'static str {
        self.source.role().map_or("foreign", Role::name)
    }
}
