//! The life of the process behind a device: the one table of supervision. State and event say what is to be done and what
//! comes next; nothing here does anything.
//!
//! ```text
//!   Pausing ─due→ Confining ─ready→ Opening ─opened→ Serving ─lost→ Leaving   (missing: from the two before)
//!     ▲  │            └───────────────┴── broken, late, silent ────────┘
//!     │  └─hopeless→ GivenUp                      ▼
//!     └───────── exited, from any ───────────── Dying ◄─ the operator wants another
//! ```

/// Where the process behind a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It was started, and confines itself.
    Confining,
    /// It was verified and has the image.
    Opening,
    /// The vmm has its socket.
    Serving,
    /// We, or the vmm, have lost it: it should be about to end, and how it ends tells whose fault that is.
    Leaving,
    /// It was sent SIGKILL. However long it takes, nothing happens before it has ended: two must never write one image.
    Dying,
    /// There is none, until the pause is over.
    Pausing,
    /// There is none, and none is tried: the guest gets errors.
    GivenUp,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is confined, and was verified.
    Ready,
    /// It has made a disk of the image.
    Opened,
    /// It has ended.
    Exited,
    /// It broke its protocol while it served.
    Broken,
    /// It took too long.
    Late,
    /// It does not answer.
    Silent,
    /// The vmm's connection is over. While a process is being started that is news of the last one.
    Lost,
    /// It was not there when we looked at it.
    Missing,
    /// The pause is over.
    Due,
    /// It failed too often.
    Hopeless,
    /// The operator wants another.
    Restart,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Start a process.
    Launch,
    /// Hand over image and listener.
    Serve,
    /// Give the vmm the connection.
    Connect,
    /// Send SIGKILL.
    Kill,
    /// Find out how long to pause, or that there is no hope.
    Plan,
    /// Tell the vmm that there will be none.
    Abandon,
}

/// The table. What is not in it changes nothing.
pub fn next(state: State, event: Event) -> (State, Action) {
    use Action::{Abandon, Connect, Kill, Launch, Nothing, Plan, Serve};
    use Event::{Broken, Due, Exited, Hopeless, Late, Lost, Missing, Opened, Ready, Restart, Silent};
    use State::{Confining, Dying, GivenUp, Leaving, Opening, Pausing, Serving};
    match (state, event) {
        (Confining, Ready) => (Opening, Serve),
        (Opening, Opened) => (Serving, Connect),
        (Serving, Lost) | (Confining | Opening, Missing) => (Leaving, Nothing),
        (Confining | Opening | Leaving, Broken | Late | Restart) => (Dying, Kill),
        (Serving, Broken | Silent | Restart) => (Dying, Kill),
        (Confining | Opening | Serving | Leaving | Dying, Exited) => (Pausing, Plan),
        (Pausing, Due | Restart) | (GivenUp, Restart) => (Confining, Launch),
        (Pausing, Hopeless) => (GivenUp, Abandon),
        (state, _) => (state, Nothing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 7] = [
        State::Confining,
        State::Opening,
        State::Serving,
        State::Leaving,
        State::Dying,
        State::Pausing,
        State::GivenUp,
    ];
    const EVENTS: [Event; 11] = [
        Event::Ready,
        Event::Opened,
        Event::Exited,
        Event::Broken,
        Event::Late,
        Event::Silent,
        Event::Lost,
        Event::Missing,
        Event::Due,
        Event::Hopeless,
        Event::Restart,
    ];

    fn has_process(state: State) -> bool {
        !matches!(state, State::Pausing | State::GivenUp)
    }

    /// No event makes a second process while there is one, and none is forgotten before it has ended.
    #[test]
    fn there_is_never_more_than_one_process() {
        for state in STATES {
            for event in EVENTS {
                let (after, action) = next(state, event);
                assert!(action != Action::Launch || !has_process(state), "{state:?} {event:?}");
                let gone = has_process(state) && !has_process(after);
                assert!(!gone || event == Event::Exited, "{state:?} {event:?}");
                assert_eq!(action == Action::Launch, !has_process(state) && has_process(after), "{state:?} {event:?}");
            }
        }
    }

    /// Whatever state it is in, the operator gets another process, and an end is always noticed.
    #[test]
    fn no_state_is_a_trap() {
        for state in STATES {
            let (mut state, mut launched) = (state, false);
            for event in [Event::Restart, Event::Exited, Event::Due] {
                let (after, action) = next(state, event);
                (state, launched) = (after, launched || action == Action::Launch);
            }
            assert!(launched, "{state:?}");
        }
    }

    /// The vmm may tell of the last process's end when the next one has been started: that one has no connection yet.
    #[test]
    fn a_connection_that_ends_late_is_not_held_against_the_next_process() {
        for state in [State::Confining, State::Opening, State::Pausing, State::Dying] {
            assert_eq!(next(state, Event::Lost), (state, Action::Nothing));
        }
        assert_eq!(next(State::Serving, Event::Lost).0, State::Leaving);
    }

    /// The vmm is given a connection only to a process that was verified and has opened its image.
    #[test]
    fn nothing_is_handed_over_out_of_order() {
        let made = |wanted| -> Vec<(State, Event)> {
            let all = STATES.iter().flat_map(|state| EVENTS.map(|event| (*state, event)));
            all.filter(|(state, event)| next(*state, *event).1 == wanted).collect()
        };
        assert_eq!(made(Action::Serve), [(State::Confining, Event::Ready)]);
        assert_eq!(made(Action::Connect), [(State::Opening, Event::Opened)]);
        assert_eq!(made(Action::Abandon), [(State::Pausing, Event::Hopeless)]);
    }
}
