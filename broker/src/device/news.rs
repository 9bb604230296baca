//! What the vmm says of a device, and what an operator sees of it.

use std::time::Instant;

use ipc::control::DeviceEvent;
use ipc::specimen::Specimen;
use serde_json::{Value, json};

use super::table::Event;
use super::{Context, Device, Source};
use crate::quarantine::{Kept, Quarantine};

impl Device {
    /// The vmm has something to say of connection `connection`.
    pub fn reported(&mut self, connection: u64, event: DeviceEvent, context: &mut Context<'_>) {
        // What was set aside stays so, whoever serves since.
        if let DeviceEvent::Quarantined(specimen) = &event {
            return self.quarantine(specimen, context.quarantine);
        }
        if connection + 1 != self.connections {
            return;
        }
        match event {
            DeviceEvent::Lost(reason) => {
                tracing::debug!("{}: the vmm has lost it: {reason}", self.name);
                if self.back_end.is_none() {
                    self.cause = Some((format!("its back end is gone: {reason}"), true));
                    self.happened(Event::Lost, context);
                    return self.happened(Event::Exited, context);
                }
                self.happened(Event::Lost, context);
            }
            DeviceEvent::Restored => {
                // Once for each time that it was gone: the vmm may say so as often as it likes.
                if let Some(since) = self.down.take() {
                    tracing::info!("{}: it is served again, after {} ms", self.name, since.elapsed().as_millis());
                }
            }
            DeviceEvent::NeedsReset(reason) if self.news.take(Instant::now()) => {
                tracing::warn!("{}: it asked the guest's driver for a reset: {reason}", self.name);
            }
            DeviceEvent::Stalled(seconds) => self.stalled(seconds, context),
            DeviceEvent::NeedsReset(_) | DeviceEvent::Quarantined(_) => {}
        }
    }

    /// A request that crashed its process is set aside. With it the cause of the deaths before is gone.
    fn quarantine(&mut self, specimen: &Specimen, quarantine: &Quarantine) {
        if !self.blame.quarantine() {
            return tracing::debug!("{}: the vmm sets a request aside that no process has died of", self.name);
        }
        self.patience.cause_is_gone();
        let Specimen { what, among, .. } = specimen;
        tracing::warn!(
            "{}: {what} crashes its process: it was found among {among} requests and set aside; the guest gets an I/O error \
             for it, and for nothing else",
            self.name
        );
        let read_only = matches!(&self.source, Source::Own(image) if image.disk.read_only);
        let cut = if specimen.whole() { "" } else { ", cut to what the fuzzer takes" };
        match quarantine.keep(&specimen.input(read_only)) {
            Ok(Kept::New(path)) => {
                tracing::warn!("{}: the request is in {} for the disk's fuzzer{cut}", self.name, path.display());
            }
            Ok(Kept::Known(path)) => tracing::warn!("{}: the request is known: {}", self.name, path.display()),
            Ok(Kept::Unwanted) => {}
            Err(error) => {
                let reason = ipc::outcome::cause_chain(&error);
                tracing::warn!("{}: the request is not kept for the fuzzer: {reason}", self.name);
            }
        }
    }

    /// What is to be seen of it.
    pub fn report(&self) -> Value {
        json!({
            "name": self.name,
            "state": format!("{:?}", self.state).to_lowercase(),
            "what": self.source.what(),
            "replaced": self.connections.saturating_sub(1),
            "quarantined": self.blame.quarantined,
        })
    }
}
