//! What is to be told the broker of a device, kept until it is told. The channel may be full, and whoever reports must not
//! wait; but a loss that the broker never hears of is a device that nobody replaces.
//!
//! Of whether a device is lost or restored the later event is kept, and so are the first few requests that were set aside. A
//! driver's fault that finds no room is dropped: nobody acts on it; and so is that a process completes nothing, which is said
//! again while it lasts.

use std::sync::{Mutex, PoisonError};

use ipc::ChannelError;
use ipc::control::{DeviceEvent, FromVmm};

use crate::outcome::cause_chain;

/// Most requests that are kept: each has some bytes of the guest's.
const REQUESTS: usize = 8;

/// News of all devices.
#[derive(Debug, Default)]
pub struct News(Mutex<Vec<(u16, u64, DeviceEvent)>>);

impl News {
    /// Says by `say` what became of a device on its connection `connection`, or keeps it. False if something is kept.
    pub fn tell(
        &self,
        device: u16,
        connection: u64,
        event: DeviceEvent,
        say: impl FnMut(&FromVmm) -> Result<(), ChannelError>,
    ) -> bool {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if of_state(&event) {
            kept.retain(|(other, _, event)| *other != device || !of_state(event));
        }
        let requests = kept.iter().filter(|(.., event)| matches!(event, DeviceEvent::Quarantined(_))).count();
        if requests < REQUESTS || of_state(&event) {
            kept.push((device, connection, event));
        }
        flush(&mut kept, say);
        kept.retain(|(.., event)| !matches!(event, DeviceEvent::NeedsReset(_) | DeviceEvent::Stalled(_)));
        kept.is_empty()
    }

    /// Says what was kept. False if something still is.
    pub fn retry(&self, say: impl FnMut(&FromVmm) -> Result<(), ChannelError>) -> bool {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        flush(&mut kept, say);
        kept.is_empty()
    }
}

/// Whether it says in what state the device is.
fn of_state(event: &DeviceEvent) -> bool {
    matches!(event, DeviceEvent::Lost(_) | DeviceEvent::Restored)
}

/// Says them in order, up to the first that finds no room.
fn flush(kept: &mut Vec<(u16, u64, DeviceEvent)>, mut say: impl FnMut(&FromVmm) -> Result<(), ChannelError>) {
    while let Some((device, connection, event)) = kept.first().cloned() {
        match say(&FromVmm::Device { device, connection, event }) {
            Err(ChannelError::Full) => return,
            // The broker is gone, and nobody is left to tell.
            Err(error) => tracing::debug!("reporting to the broker: {}", cause_chain(&error)),
            Ok(()) => {}
        }
        kept.remove(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(reason: &str) -> DeviceEvent {
        DeviceEvent::Lost(reason.into())
    }

    #[test]
    fn what_finds_no_room_is_said_later_and_only_the_latest_of_each_device() {
        let news = News::default();
        let full = |_: &FromVmm| Err(ChannelError::Full);
        assert!(!news.tell(0, 0, lost("a"), full));
        assert!(!news.tell(1, 4, lost("b"), full));
        assert!(!news.tell(0, 0, DeviceEvent::Restored, full));
        assert!(!news.tell(0, 1, DeviceEvent::NeedsReset("x".into()), full));
        assert!(!news.tell(0, 1, DeviceEvent::Stalled(5), full));
        assert!(!news.retry(full));
        let request = || DeviceEvent::Quarantined(Box::default());
        (0..2 * REQUESTS).for_each(|_| assert!(!news.tell(0, 1, request(), full)));
        assert!(!news.tell(0, 1, DeviceEvent::Restored, full));
        let mut said = Vec::new();
        assert!(news.retry(|message| {
            said.push(message.clone());
            Ok(())
        }));
        let told = |device, connection, event| FromVmm::Device { device, connection, event };
        let mut wanted = vec![told(1, 4, lost("b"))];
        wanted.extend((0..REQUESTS).map(|_| told(0, 1, request())));
        wanted.push(told(0, 1, DeviceEvent::Restored));
        assert_eq!(said, wanted);
        assert!(news.retry(full), "nothing is left to say");
        assert!(news.tell(0, 1, lost("c"), |_| Ok(())));
        assert!(news.tell(0, 1, lost("d"), |_| Err(ChannelError::Closed)), "nobody is left to tell");
    }
}
