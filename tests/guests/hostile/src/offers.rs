//! Attacks on offers: others' offers, used ones, more than was offered, another's user.

use crate::calls::shell;
use std::collections::BTreeMap;
use tessera_sdk::bindings::tessera::framework::types::{
    Launch, Offer, TaskBody, TaskSpec, WasmCommand,
};
use tessera_sdk::bindings::tessera::framework::{driver, specs};

/// Offers that are tried in one turn.
pub const GUESSES: u64 = 40;

/// Memory of a Wasm task.
const TASK_MEM_MIB: u64 = 32;

/// The attack of this name, if a request starts it.
pub fn attack(name: &str) -> Option<String> {
    Some(match name {
        "offers-none" => format!("contained: {:?}", accept(&[], "none", &shell("true"))),
        _ => return None,
    })
}

/// Accept the offers that were made after this one, whoever has them: what it declined is offered to a
/// neighbour next, and numbers rise.
pub fn guess(after: u64) -> Vec<String> {
    let numbers = after + 1..=after + GUESSES;
    numbers
        .filter_map(|offer| accept(&[offer], &format!("foreign-{offer}"), &shell("true")))
        .collect()
}

/// What to do with offers; what was refused at once.
pub fn on_offers(
    attack: &str,
    offered: &[Offer],
    config: &BTreeMap<String, String>,
) -> Vec<String> {
    let mut notes = Vec::new();
    for offer in offered {
        match attack {
            "offers-twice" => {
                for number in 0..2 {
                    let id = format!("twice-{number}");
                    notes.extend(accept(&[offer.id], &id, &shell("true")));
                }
            }
            "offers-doubled" => {
                let ids = [offer.id, offer.id];
                notes.extend(accept(&ids, "doubled", &shell("true")));
                decline(offer.id);
            }
            "offers-too-much" => {
                let mut spec = shell("true");
                spec.resources = offer.available;
                spec.resources.mem_mib += 1;
                notes.extend(accept(&[offer.id], "too-much", &spec));
            }
            "offers-user" => {
                let mut spec = shell("id -u");
                spec.user = Some("root".to_owned());
                notes.extend(accept(&[offer.id], "as-root", &spec));
            }
            // Neighbours that sit on their offers leave pieces that it does not fit on.
            "task" if offer.available.mem_mib < TASK_MEM_MIB => wait_for_more(offer.id),
            "task" => notes.extend(accept(&[offer.id], "t", &task(config))),
            _ => decline(offer.id),
        }
    }
    notes
}

/// A Wasm task as the configuration says.
fn task(config: &BTreeMap<String, String>) -> TaskSpec {
    let of = |name: &str| config.get(name).cloned().unwrap_or_default();
    let mut spec = shell("");
    spec.body = TaskBody::Wasm(WasmCommand {
        component: of("task"),
        args: vec![of("argument")],
    });
    spec.resources.mem_mib = TASK_MEM_MIB;
    spec.result_file = Some("result".to_owned());
    spec
}

fn wait_for_more(offer: u64) {
    let _ = driver::decline(&[offer], driver::Filters { refuse_ms: 0 });
}

fn decline(offer: u64) {
    let filters = driver::Filters { refuse_ms: 600_000 };
    let _ = driver::decline(&[offer], filters);
}

/// Launch one task on these offers; the refusal, if the call is refused.
fn accept(offers: &[u64], task: &str, spec: &TaskSpec) -> Option<String> {
    let spec = match specs::define(spec) {
        Ok(spec) => spec,
        Err(error) => return Some(format!("{error:?}")),
    };
    let launch = driver::Operation::Launch(Launch {
        task: task.to_owned(),
        spec,
        args: Vec::new(),
        env: Vec::new(),
    });
    let filters = driver::Filters { refuse_ms: 600_000 };
    let error = driver::accept(offers, &[launch], filters, None).err()?;
    Some(format!("{error:?}"))
}
