//! Whose fault the end of a device's process was, as far as the requests that it had are concerned.
//!
//! The vmm is told with each connection whether the process behind the one before ended by its own fault: it then looks for
//! the request that did it, and says which it was. That is believed as far as there were deaths to show for it, and no
//! further: what a vmm in other hands can have written is bounded by what its devices' processes really die of.

/// Deaths by its own fault that one request costs a process at least.
const DEATHS: u32 = 2;

/// See the module.
#[derive(Debug, Default)]
pub struct Blame {
    /// The vmm has a connection to the process that is there.
    connected: bool,
    /// The last process that the vmm had a connection to ended by its own fault, which it has not been told yet.
    fault: bool,
    /// Deaths by own fault for which nothing has been set aside.
    deaths: u32,
    /// Requests set aside.
    pub quarantined: u32,
}

impl Blame {
    /// What the vmm is to be told with the next connection.
    pub fn verdict(&self) -> bool {
        self.fault
    }

    /// It has that connection.
    pub fn connected(&mut self) {
        (self.connected, self.fault) = (true, false);
    }

    /// The process has ended. One that the vmm never had a connection to had no request.
    pub fn ended(&mut self, fault: bool) {
        if std::mem::take(&mut self.connected) {
            self.fault = fault;
            self.deaths = self.deaths.saturating_add(u32::from(fault));
        }
    }

    /// The vmm says that it has set a request aside. False if there were no deaths for that.
    pub fn quarantine(&mut self) -> bool {
        let good = self.deaths >= DEATHS;
        if good {
            (self.deaths, self.quarantined) = (0, self.quarantined + 1);
        }
        good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn die(blame: &mut Blame, fault: bool) -> bool {
        blame.connected();
        blame.ended(fault);
        blame.verdict()
    }

    #[test]
    fn only_the_end_of_a_process_that_had_requests_is_told() {
        let mut blame = Blame::default();
        blame.ended(true);
        assert!(!blame.verdict(), "the vmm had none");
        assert!(die(&mut blame, true));
        // Others that never came to serve change nothing about that.
        blame.ended(false);
        blame.ended(true);
        assert!(blame.verdict());
        assert!(!die(&mut blame, false));
    }

    #[test]
    fn what_was_set_aside_must_have_cost_deaths() {
        let mut blame = Blame::default();
        assert!(!blame.quarantine());
        die(&mut blame, true);
        die(&mut blame, false);
        assert!(!blame.quarantine(), "kills from outside do not count");
        die(&mut blame, true);
        assert!(blame.quarantine() && !blame.quarantine());
        assert_eq!(blame.quarantined, 1);
    }
}
