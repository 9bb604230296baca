//! The monitor's keys on a raw terminal: Ctrl-A and a letter.

/// Ctrl-A.
const PREFIX: u8 = 0x01;

/// What a key sequence asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leave: end the machine, or detach from it.
    Quit,
    /// Press the power button.
    PowerButton,
    /// Show the keys.
    Help,
}

/// What [`Action::Help`] shows.
pub const HELP: &str = "\r\nCtrl-A h  this help\r\nCtrl-A x  quit\r\nCtrl-A p  press the power button\r\n\
                        Ctrl-A a  send Ctrl-A\r\n";

/// The same for `bulkhead console`, where [`Action::Quit`] detaches.
pub const ATTACHED_HELP: &str = "\r\nCtrl-A h  this help\r\nCtrl-A x  detach: the machine runs on\r\n\
                                 Ctrl-A p  press the power button\r\nCtrl-A a  send Ctrl-A\r\n";

/// Separates the guest's bytes from the monitor's.
#[derive(Debug, Default)]
pub struct Escape {
    prefixed: bool,
}

impl Escape {
    /// Appends to `to` what the guest gets of `input`, and returns what was asked for, in order.
    pub fn filter(&mut self, input: &[u8], to: &mut Vec<u8>) -> Vec<Action> {
        let mut actions = Vec::new();
        for byte in input {
            if !self.prefixed {
                self.prefixed = *byte == PREFIX;
                to.extend((!self.prefixed).then_some(*byte));
                continue;
            }
            self.prefixed = false;
            match byte {
                b'x' | b'X' => actions.push(Action::Quit),
                b'p' | b'P' => actions.push(Action::PowerButton),
                b'h' | b'H' | b'?' => actions.push(Action::Help),
                b'a' | b'A' | &PREFIX => to.push(PREFIX),
                // Not one of ours: the guest gets both.
                other => to.extend([PREFIX, *other]),
            }
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(chunks: &[&[u8]]) -> (Vec<u8>, Vec<Action>) {
        let (mut escape, mut to, mut actions) = (Escape::default(), Vec::new(), Vec::new());
        for c in chunks {
            actions.extend(escape.filter(c, &mut to));
        }
        (to, actions)
    }

    #[test]
    fn keys_are_told_from_bytes() {
        assert_eq!(all(&[b"ls\r"]), (b"ls\r".to_vec(), vec![]));
        assert_eq!(all(&[b"a\x01x"]), (b"a".to_vec(), vec![Action::Quit]));
        assert_eq!(all(&[b"\x01", b"ab"]), (b"\x01b".to_vec(), vec![]), "across reads");
        assert_eq!(all(&[b"\x01\x01x"]), (b"\x01x".to_vec(), vec![]));
        assert_eq!(all(&[b"\x01q\x01h\x01p"]), (b"\x01q".to_vec(), vec![Action::Help, Action::PowerButton]));
    }
}
