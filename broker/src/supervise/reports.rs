//! What the vmm says, and what that means for its machine.

use std::time::Instant;

use ipc::ChannelError;
use ipc::control::FromVmm;
use ipc::outcome::cause_chain;

use super::Supervisor;

impl Supervisor {
    /// Hears what the vmm has said, in so many packets at most.
    pub(super) fn take_reports(&mut self, mut packets: u32) {
        while self.link_open {
            match self.vmm.link.hear(&mut packets) {
                Ok(Some(report)) => self.note(report),
                Ok(None) => return,
                Err(ChannelError::Closed) => {
                    self.link_open = false;
                    self.leaving();
                }
                Err(error) => {
                    // It is broken, or in other hands. What it says from now on is of no interest.
                    self.link_open = false;
                    tracing::error!("the vmm breaks its protocol and is stopped: {}", cause_chain(&error));
                    self.kill();
                }
            }
        }
    }

    fn note(&mut self, report: FromVmm) {
        match report {
            FromVmm::Started { protocol, engine, startup_ns } => {
                tracing::debug!("{protocol} kernel on engine {engine}, started in {} us", startup_ns / 1000);
                self.started = true;
                self.notifier.tell(&format!("READY=1\nSTATUS={} runs on engine {engine}", self.name));
                self.stats.insert(0, ("vmm.startup_us".into(), startup_ns / 1000));
            }
            FromVmm::Rebooted { cause } => {
                if self.news.take(Instant::now()) {
                    tracing::info!("the guest reset ({cause}): starting again");
                }
            }
            FromVmm::Device { device, connection, event } => {
                self.devices.reported(device, connection, event, &mut self.vmm.link);
            }
            FromVmm::Alive(number) => {
                if self.heart.answered(number, Instant::now()) {
                    tracing::info!("the vmm answers again");
                }
            }
            FromVmm::Ended { outcome, stats } => {
                self.notifier.tell(&format!("STOPPING=1\nSTATUS={outcome}"));
                self.devices.retire();
                self.outcome = Some(outcome);
                self.stats.extend(stats);
                self.leaving();
            }
            // Told before the guest was started; log events do not come here.
            FromVmm::Ready { .. } | FromVmm::Log(_) => {}
        }
    }
}
