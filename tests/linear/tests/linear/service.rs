//! A simulated service of registers and its clients, in virtual time. It is linearizable, unless a bug is
//! planted: each operation takes effect at one instant between its call and its return.

use std::collections::{BTreeMap, VecDeque};

use tessera_linear::{History, Model, Recorder, Register, RegisterAnswer, RegisterCall};

use crate::rng::Rng;

/// What the service does wrong, once in a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A read is answered from the state before the last change.
    StaleRead,
    /// A write is acknowledged and not applied.
    LostWrite,
    /// A compare-and-swap is applied whatever the value is.
    BlindSwap,
    /// A write is applied again some operations later.
    AppliedTwice,
    /// A write is applied, taken back after a while, and acknowledged.
    TakenBack,
}

impl Bug {
    pub const ALL: [Self; 5] = [
        Self::StaleRead,
        Self::LostWrite,
        Self::BlindSwap,
        Self::AppliedTwice,
        Self::TakenBack,
    ];
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub seed: u64,
    pub clients: u64,
    pub keys: u64,
    pub operations: u64,
    /// Operations of unknown outcome, in percent; half of them happen.
    pub unknown: u64,
    pub bug: Option<Bug>,
}

/// How often the bug shows where it can, in percent.
const BUG: u64 = 15;
/// After how many changes of a key a late effect of a bug comes.
const LATE: usize = 3;

#[derive(Default)]
struct Cell {
    value: Option<String>,
    before: Option<String>,
    /// Values that a bug puts in place later, with how many changes from now.
    late: VecDeque<(usize, Option<String>)>,
}

impl Cell {
    fn set(&mut self, value: Option<String>) {
        self.before = std::mem::replace(&mut self.value, value);
        self.late
            .iter_mut()
            .for_each(|late| late.0 = late.0.saturating_sub(1));
        if let Some((_, value)) = self.late.pop_front_if(|late| late.0 == 0) {
            self.before = std::mem::replace(&mut self.value, value);
        }
    }

    fn apply(&mut self, input: &RegisterCall, bug: Option<Bug>) -> RegisterAnswer {
        let answer = match input {
            RegisterCall::Read => RegisterAnswer::Value {
                value: self.value.clone(),
            },
            RegisterCall::Cas { from, .. } if *from != self.value => RegisterAnswer::Differs,
            _ => RegisterAnswer::Done,
        };
        match (input, bug) {
            (RegisterCall::Read, Some(Bug::StaleRead)) => {
                return RegisterAnswer::Value {
                    value: self.before.clone(),
                };
            }
            (RegisterCall::Write { .. }, Some(Bug::LostWrite)) => return RegisterAnswer::Done,
            (RegisterCall::Write { value }, Some(Bug::AppliedTwice)) => {
                self.late.push_back((LATE, value.clone()));
            }
            (RegisterCall::Write { .. }, Some(Bug::TakenBack)) => {
                self.late.push_back((LATE, self.value.clone()));
            }
            (RegisterCall::Cas { to, .. }, Some(Bug::BlindSwap)) => {
                self.set(to.clone());
                return RegisterAnswer::Done;
            }
            _ => {}
        }
        if answer == RegisterAnswer::Done
            && let Some(next) = Register.step(&self.value, input, Some(&answer))
        {
            self.set(next);
        }
        answer
    }
}

enum Event {
    Call {
        client: u64,
    },
    Effect {
        key: String,
        input: RegisterCall,
        operation: tessera_linear::OperationId,
        returns: Option<u64>,
        client: u64,
    },
    Return {
        operation: tessera_linear::OperationId,
        output: RegisterAnswer,
        client: u64,
    },
}

/// What clients saw of a service.
pub fn run(options: Options) -> History<RegisterCall, RegisterAnswer> {
    let mut rng = Rng(options.seed);
    let mut recorder = Recorder::default();
    let mut cells: BTreeMap<String, Cell> = BTreeMap::new();
    let mut events: BTreeMap<(u64, u64), Event> = BTreeMap::new();
    let mut number = options.clients;
    for client in 0..options.clients {
        events.insert((rng.below(20), client), Event::Call { client });
    }
    let mut left = options.operations;
    while let Some(((now, _), event)) = events.pop_first() {
        number += 1;
        match event {
            Event::Call { .. } if left == 0 => {}
            Event::Call { client } => {
                left -= 1;
                let key = format!("k{}", rng.below(options.keys));
                let input = ask(&mut rng, left, cells.get(&key));
                let operation = recorder.called(client, &key, input.clone(), now);
                let effect = now + rng.below(30);
                let returns = (!rng.chance(options.unknown)).then(|| effect + rng.below(30));
                if returns.is_none() {
                    // The client gives up and asks something else; the service may be late.
                    events.insert((now + 40, number), Event::Call { client });
                    number += 1;
                }
                if returns.is_some() || rng.chance(50) {
                    let late = if returns.is_none() { rng.below(500) } else { 0 };
                    let event = Event::Effect {
                        key,
                        input,
                        operation,
                        returns,
                        client,
                    };
                    events.insert((effect + late, number), event);
                }
            }
            Event::Effect {
                key,
                input,
                operation,
                returns,
                client,
            } => {
                let bug = options.bug.filter(|_| rng.chance(BUG));
                let output = cells.entry(key).or_default().apply(&input, bug);
                if let Some(at) = returns {
                    events.insert(
                        (at, number),
                        Event::Return {
                            operation,
                            output,
                            client,
                        },
                    );
                }
            }
            Event::Return {
                operation,
                output,
                client,
            } => {
                recorder.returned(operation, output, now);
                events.insert((now + rng.below(10), number), Event::Call { client });
            }
        }
    }
    recorder.finish().expect("operations that fit together")
}

/// Every value is written once; swaps mostly ask for what is there.
fn ask(rng: &mut Rng, unique: u64, cell: Option<&Cell>) -> RegisterCall {
    let value = Some(unique.to_string());
    match rng.below(10) {
        0..5 => RegisterCall::Read,
        5..8 => RegisterCall::Write { value },
        _ => {
            let there = cell
                .and_then(|cell| cell.value.clone())
                .filter(|_| rng.chance(80));
            RegisterCall::Cas {
                from: there,
                to: value,
            }
        }
    }
}
