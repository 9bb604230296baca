//! The life of the process behind a device, as the device sees it: the edges of the diagram in [`super`].

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::super::chain::GuestError;
use super::super::dma::Dma;
use super::super::front_end::{Command, Event, Kick, Offer, towards_device};
use super::super::guest_ring::F_EVENT_IDX;
use super::super::hunt::Id;
use super::super::pci::status;
use super::super::pool::Pool;
use super::super::region;
use super::super::shadow::Shadow;
use super::super::specimen::Specimen;
use super::super::transfer::{Bounce, Transfer};
use super::{DRAIN, DeviceEvent, Inner, Link, Peer, offered};

impl Inner {
    /// News of connection `serial`; older ones are nobody's any more.
    pub(super) fn event(&mut self, event: Event) {
        let current = self.serial;
        match event {
            // A process that hangs up right after it shook hands may be lost before what it offered comes.
            Event::Offered { serial, offer, kicks } if serial == current && !self.over => {
                self.offered_again(offer, kicks);
            }
            Event::Started { serial } if serial == current && self.link == Link::Starting => self.started(),
            Event::Stopped { serial } if serial == current && self.link == Link::Stopping => {
                self.shadows.iter_mut().for_each(Shadow::detach_device);
                self.link = Link::Idle;
            }
            Event::Config { serial, config } if serial == current => self.config_changed(&config),
            Event::Stalled { serial, long } if serial == current && !self.over => self.stalled(long),
            Event::Lost { serial, reason } if serial == current && !self.over => self.lost(reason),
            _ => {}
        }
    }

    pub(super) fn adopt(&mut self, serial: u64, offer: Offer, kicks: Vec<Kick>) {
        let (first, pages) = region::data_pages(offer.region.size(), self.shadows.len());
        self.peer = Some(Peer { serial, offer, kicks, pool: Pool::new(first, pages), life: self.life });
        self.link = Link::Idle;
    }

    /// A replacement is there. It must be able to go on where the last one stopped.
    fn offered_again(&mut self, offer: Offer, kicks: Vec<Kick>) {
        if usize::from(offer.queues) < self.shadows.len() {
            self.drop_peer(format!("it has {} queues, and {} are in use", offer.queues, self.shadows.len()));
            return;
        }
        let offers = offered(&*self.kind, offer.features);
        let lacks = self.transport.common.negotiated() & !offers;
        self.transport.common.offer(offers);
        let (config, region) = (offer.config.clone(), offer.region.clone());
        self.adopt(self.serial, offer, kicks);
        (self.report)(self.serial, DeviceEvent::Restored);
        if config != self.config {
            self.show(&config, &region);
            self.announce_config();
        }
        if lacks != 0 {
            self.needs_reset(format!("the new process lacks features {lacks:#x} that the driver uses"));
        }
    }

    /// The back end's configuration changed: the guest is told once.
    fn config_changed(&mut self, config: &[u8]) {
        if let Some(region) = self.peer.as_ref().map(|peer| peer.offer.region.clone())
            && config != self.config
        {
            self.show(config, &region);
            self.announce_config();
        }
    }

    /// Starts the queues if driver and process are both there.
    pub(super) fn start(&mut self) {
        let Some(peer) = self.peer.as_mut().filter(|_| self.link == Link::Idle) else { return };
        if !self.transport.common.has(status::DRIVER_OK) {
            return;
        }
        let guest = self.transport.common.negotiated();
        let features = towards_device(peer.offer.features, guest, self.kind.features(), self.transfer);
        let (first, pages) = region::data_pages(peer.offer.region.size(), self.shadows.len());
        (peer.pool, peer.life) = (Pool::new(first, pages), self.life);
        for shadow in &mut self.shadows {
            shadow.attach_device(features & F_EVENT_IDX != 0, &peer.offer.region);
        }
        self.link = Link::Starting;
        // A replacement may have more queues than the first process had, whose number the region is laid out for.
        let queues = self.shadows.len() as u16;
        self.front_end.send(Command::Start { serial: peer.serial, queues, features });
    }

    fn started(&mut self) {
        let Some(peer) = &self.peer else { return };
        if peer.life == self.life {
            self.link = Link::Running;
        } else {
            self.begin_draining();
        }
    }

    /// After a reset by the driver: waits for what the process still holds, of which nothing is copied, then has it
    /// let go of its queues.
    pub(super) fn drain(&mut self, dma: &mut Dma<'_>) {
        let Some(peer) = &mut self.peer else { return };
        let mut bounce = Bounce { region: &peer.offer.region, pool: &mut peer.pool };
        for shadow in &mut self.shadows {
            // Of an earlier life: nothing that the guest wants an interrupt for.
            if let (_, Err(error)) = shadow.harvest(&mut bounce, dma) {
                return self.drop_peer(error.to_string());
            }
        }
        // A buffer that was lent may come back never: it ends with its queue.
        if self.shadows.iter().all(|shadow| shadow.due() == 0) {
            self.front_end.drained();
            self.link = Link::Stopping;
            self.front_end.send(Command::Stop { serial: peer.serial });
        }
    }

    pub(super) fn begin_draining(&mut self) {
        self.link = Link::Draining;
        self.front_end.expect_drained(DRAIN);
        // Perhaps nothing is out.
        self.front_end.port.ring();
    }

    /// Whether the process has something to complete.
    pub(super) fn expect_completions(&self) {
        let out = self.link == Link::Running && self.shadows.iter().any(|shadow| shadow.due() > 0);
        self.front_end.expect_completions(out);
    }

    /// A reset is complete when nobody writes guest RAM for an earlier life, and the engine knows of all that was written.
    pub(super) fn end_reset(&mut self, dma: &mut Dma<'_>) {
        if self.at_large {
            // It may write on: to look now would be too early.
            return;
        }
        self.shadows.iter_mut().for_each(|shadow| shadow.note_touched(dma));
        if self.shadows.iter().all(|shadow| !shadow.holds_earlier_life()) {
            self.transport.common.resetting = 0;
        }
    }

    /// The process has completed nothing for so long, unless that is only to be taken.
    fn stalled(&self, long: Duration) {
        let Some(peer) = self.peer.as_ref().filter(|_| self.link == Link::Running) else { return };
        if !self.shadows.iter().any(|shadow| shadow.has_completed(&peer.offer.region)) {
            let seconds = u32::try_from(long.as_secs()).unwrap_or(u32::MAX);
            (self.report)(self.serial, DeviceEvent::Stalled(seconds));
        }
    }

    /// The process broke the protocol: its connection ends.
    pub(super) fn drop_peer(&mut self, reason: String) {
        self.front_end.send(Command::Drop { serial: self.serial });
        self.lost(reason);
    }

    fn lost(&mut self, reason: String) {
        let outstanding = self.shadows.iter().any(|shadow| shadow.outstanding() > 0);
        self.at_large |= self.transfer == Transfer::Direct && outstanding && !self.abandoned;
        self.detach();
        self.over = true;
        (self.report)(self.serial, DeviceEvent::Lost(reason));
    }

    fn detach(&mut self) {
        if self.peer.is_some() {
            let out =
                |(queue, shadow): (usize, &Shadow)| shadow.out().into_iter().map(move |chain| Id { queue, chain });
            self.hunt.ended(self.shadows.iter().enumerate().flat_map(out).collect());
        }
        self.shadows.iter_mut().for_each(Shadow::detach_device);
        self.peer = None;
        self.link = Link::Down;
    }

    pub(super) fn replace(&mut self, socket: OwnedFd, fault: bool) {
        self.detach();
        self.hunt.judged(fault);
        self.serial += 1;
        (self.over, self.abandoned, self.at_large) = (false, false, false);
        self.front_end.send(Command::Adopt { serial: self.serial, socket });
    }

    /// Ends the chains that no other process is to get.
    pub(super) fn settle(&mut self, dma: &mut Dma<'_>) {
        self.lose(dma);
        self.sentence(dma);
    }

    /// A packet that a process had when it ended is lost, whether it left or not: one that crashes a process crashes only one.
    fn lose(&mut self, dma: &mut Dma<'_>) {
        for index in 0..self.shadows.len() {
            if self.shadows[index].lose(dma, &*self.kind) {
                self.transport.interrupt_queue(index, &*self.pins);
            }
        }
    }

    /// Fails the requests that crashed their processes, and only these.
    fn sentence(&mut self, dma: &mut Dma<'_>) {
        let event_idx = self.transport.common.negotiated() & F_EVENT_IDX != 0;
        while let Some((Id { queue, chain }, among)) = self.hunt.take_convict() {
            let Some((specimen, interrupt)) = self.shadows[queue].condemn(chain, dma, &*self.kind) else { continue };
            if interrupt {
                self.transport.interrupt_queue(queue, &*self.pins);
            }
            let specimen = Specimen { among, event_idx, ..specimen };
            (self.report)(self.serial, DeviceEvent::Quarantined(Box::new(specimen)));
        }
    }

    /// Fails what is outstanding and what is new.
    pub(super) fn refuse(&mut self, dma: &mut Dma<'_>) {
        if self.peer.is_some() {
            self.drop_peer("it was given up".into());
        }
        self.hunt.reset();
        let running = self.transport.common.has(status::DRIVER_OK) && !self.transport.common.has(status::NEEDS_RESET);
        let mut broken: Result<(), GuestError> = Ok(());
        for index in 0..self.shadows.len() {
            let refused = if running { self.shadows[index].refuse(dma, &*self.kind) } else { Ok(()) };
            broken = broken.and(refused);
            if self.shadows[index].fail_all(dma, &*self.kind) {
                self.transport.interrupt_queue(index, &*self.pins);
            }
        }
        if let Err(error) = broken {
            self.needs_reset(error.to_string());
        }
    }
}
