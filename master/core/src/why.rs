//! Why a role, a framework or one of its requests gets nothing, in words, with the way out.
//!
//! Invariants: every number is from the allocator's own decisions, asked once more; nothing is guessed. A follower
//! knows no offers and says so. Must never change anything.

use crate::Core;
use crate::allocator::Verdict;
use crate::leader::{Instance, Leader};
use crate::limits::{KINDS_MAX, WHY_FRAMEWORKS_MAX};
use crate::state::Framework;
use tessera_types::{CPUS, DISK, FrameworkId, MEM, ResourceRequest, Resources, RoleName, write_named};

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// What programs act on.
    pub code: &'static str,
    /// What stands in the way.
    pub text: String,
    /// The way out; none when there is nothing to do but to wait.
    pub hint: Option<String>,
    /// On how many agents it is so.
    pub agents: u32,
}

fn why(code: &'static str, text: impl Into<String>, hint: impl Into<String>) -> Why {
    Why { code, text: text.into(), hint: Some(hint.into()).filter(|hint| !hint.is_empty()), agents: 0 }
}

fn on(agents: u32, why: Why) -> Why {
    Why { agents, ..why }
}

fn agents(count: u32) -> String {
    if count == 1 { "1 agent".to_owned() } else { format!("{count} agents") }
}

const NOT_LEADER: &str = "this master does not lead, and only the leader knows who is offered what";

impl Core {
    /// Why a framework is not offered more. None if there is none.
    #[must_use]
    pub fn explain_framework(&self, id: FrameworkId) -> Option<Vec<Why>> {
        let row = self.state.frameworks.get(&id)?;
        let Some(leader) = self.leader.as_deref() else { return Some(vec![not_leader()]) };
        let mut reasons = not_asked(row, leader.instances.get(&id));
        reasons.extend(self.holding(leader, id));
        let verdict = leader.offers.allocator().verdict(id, None).unwrap_or_default();
        self.of_verdict(leader, row, None, &verdict, &mut reasons);
        Some(reasons)
    }

    /// Why one of a framework's requests is not met. None if there is no such framework or request.
    #[must_use]
    pub fn explain_request(&self, id: FrameworkId, request: &str) -> Option<Vec<Why>> {
        let row = self.state.frameworks.get(&id)?;
        let at = row.requests.iter().position(|known| known.id == request)?;
        let Some(leader) = self.leader.as_deref() else { return Some(vec![not_leader()]) };
        let mut reasons = not_asked(row, leader.instances.get(&id));
        let verdict = leader.offers.allocator().verdict(id, Some(at)).unwrap_or_default();
        if verdict.enough > 0 {
            reasons.extend(self.holding(leader, id));
        }
        self.of_verdict(leader, row, row.requests.get(at), &verdict, &mut reasons);
        Some(reasons)
    }

    /// Why a role does not get more. None if nothing is known of it.
    #[must_use]
    pub fn explain_role(&self, role: &RoleName) -> Option<Vec<Why>> {
        let below = |of: &RoleName| of.lineage().any(|above| above == role.as_str());
        let frameworks = self.state.frameworks.iter().filter(|(_, row)| below(&row.role));
        let frameworks: Vec<FrameworkId> = frameworks.map(|(id, _)| *id).collect();
        if frameworks.is_empty() && !self.state.roles.contains_key(role.as_str()) {
            return None;
        }
        let Some(leader) = self.leader.as_deref() else { return Some(vec![not_leader()]) };
        let mut reasons = Vec::new();
        if frameworks.is_empty() {
            let text = format!("no framework is in role {role} or below, so nobody asks for anything");
            reasons.push(why("NO_FRAMEWORKS", text, "create one: `tessera framework create`"));
        }
        reasons.extend(role.lineage().filter_map(|role| at_limit(leader, role, 0)));
        let allocator = leader.offers.allocator();
        if let Some(lacking) = allocator.lacking(role.as_str()) {
            let text = format!("its guarantee lacks {}", some(&lacking));
            let hint = "it is met first from what becomes free; revocable work in its way is ended";
            reasons.push(why("GUARANTEE_LACKS", text, hint));
        }
        let share = allocator.share_of(role.as_str()).filter(|(share, _)| *share > 0);
        if let Some((share, kind)) = share.filter(|_| allocator.others_wait(role.as_str())) {
            let (whole, part) = (share / 10_000, share / 100 % 100);
            let text = format!("it has {whole}.{part:02} % of all {kind}, offers included; who has less for its weight comes first");
            let hint = format!("`tessera role set {role} --weight` gives it more among its siblings");
            reasons.push(why("BEHIND", text, hint));
        }
        // The reasons of its frameworks, each once, with the framework that it is worst for.
        for id in frameworks.into_iter().take(WHY_FRAMEWORKS_MAX) {
            for reason in self.explain_framework(id).unwrap_or_default() {
                let name = self.state.frameworks.get(&id).map(|row| row.name.to_string()).unwrap_or_default();
                let told = Why { text: format!("{name}: {}", reason.text), ..reason };
                match reasons.iter_mut().find(|known| known.code == told.code) {
                    Some(known) if known.agents >= told.agents => {}
                    Some(known) => *known = told,
                    None => reasons.push(told),
                }
            }
        }
        Some(reasons)
    }

    /// What it is being offered and has not answered.
    fn holding(&self, leader: &Leader, id: FrameworkId) -> Option<Why> {
        let held = leader.offers.held_by(id);
        let count = u32::try_from(leader.offers.count_by(id)).unwrap_or(u32::MAX);
        (count > 0).then(|| {
            let text = format!("it is being offered {held} on {} and has not answered", agents(count));
            let hint = "a scheduler accepts or declines each offer; what it does not answer is taken back after the offer timeout";
            on(count, why("HOLDS_OFFERS", text, hint))
        })
    }

    fn of_verdict(
        &self,
        leader: &Leader,
        row: &Framework,
        request: Option<&ResourceRequest>,
        verdict: &Verdict,
        reasons: &mut Vec<Why>,
    ) {
        if verdict.agents == 0 {
            let text = "no agent is connected and in use";
            reasons.push(why("NO_AGENTS", text, "`tessera agent ls` says how they are; `tessera agent` starts one"));
            return;
        }
        let allocator = leader.offers.allocator();
        let asked: Vec<&ResourceRequest> = request.map_or_else(|| row.requests.iter().collect(), |one| vec![one]);
        let mut absent = false;
        for of in &asked {
            for (name, too_many) in allocator.nobody_has(&of.resources) {
                absent = true;
                let known = reasons.iter().any(|reason| reason.code == "NO_SUCH_RESOURCE" && request.is_none());
                reasons.extend((!known).then(|| on(verdict.agents, no_such_resource(&of.id, name, too_many))));
            }
        }
        let taken_back = if verdict.revocable { 0 } else { leader.offers.taken_back(&row.role) };
        if taken_back > 0 {
            let text = format!("revocable work on {} stands in its way and is being taken back", agents(taken_back));
            let hint = "it is met when that has ended, after the grace of preemption at the latest";
            reasons.push(on(taken_back, why("TAKEN_BACK", text, hint)));
        }
        if let Some(request) = request {
            if absent {
                return;
            }
            reasons.extend(of_request(request, verdict, row, taken_back > 0));
        }
        for (role, count) in &verdict.limits {
            reasons.extend(at_limit(leader, role, *count).or_else(|| {
                let text = format!(
                    "the quota limit of role {role}, and what guarantees below it still need, leave too little on {}",
                    agents(*count)
                );
                Some(on(*count, why("QUOTA_LIMIT", text, format!("`tessera role set {role} --limit` raises it"))))
            }));
        }
        if verdict.headroom > 0 {
            let count = verdict.headroom;
            reasons.push(on(count, if verdict.revocable {
                let text = format!("nothing on {} is kept for guarantees, and only that is offered to be taken back", agents(count));
                why("HEADROOM", text, "ask for resources that are not revocable, or give some role a guarantee")
            } else {
                let needed = some(&leader.offers.allocator().needed());
                let text = format!("what is free on {} is kept for guarantees, which lack {needed}", agents(count));
                why("HEADROOM", text, "lower those guarantees, give its role one that is larger, or ask for revocable resources")
            }));
        }
        if verdict.refused > 0 {
            let text = format!("it declined what is free on {}, and the time it gave has not passed", agents(verdict.refused));
            let hint = "the scheduler revives, or declines for a shorter time";
            reasons.push(on(verdict.refused, why("DECLINED", text, hint)));
        }
        if verdict.constraints > 0 && request.is_none() {
            let text = format!("{} fulfil the constraints of none of its requests", agents(verdict.constraints));
            let hint = "`tessera agent inspect` shows the attributes of one";
            reasons.push(on(verdict.constraints, why("CONSTRAINTS", text, hint)));
        }
        if verdict.too_small > 0 && request.is_none() {
            let text = if row.requests.is_empty() {
                format!("what is free on {} is less than the smallest offer of role {}", agents(verdict.too_small), row.role)
            } else {
                format!("what is free on {} is less than each of its requests", agents(verdict.too_small))
            };
            let hint = format!("smaller pieces, or a smaller smallest offer: `tessera role set {} --min-offer`", row.role);
            reasons.push(on(verdict.too_small, why("TOO_SMALL", text, hint)));
        }
        if verdict.held_for_others > 0 {
            let text = format!("{} are held for large requests of others", agents(verdict.held_for_others));
            reasons.push(on(verdict.held_for_others, why("HELD_FOR_OTHERS", text, "")));
        }
        if verdict.nothing_free > 0 {
            let text = format!("on {} nothing is free: all of it is used or offered", agents(verdict.nothing_free));
            let hint = format!(
                "wait until something ends, add agents, or give role {} a guarantee: `tessera role set {} --guarantee`",
                row.role, row.role
            );
            reasons.push(on(verdict.nothing_free, why("IN_USE", text, hint)));
        }
        // Of whoever is not asked, that is said already.
        let asked = !reasons.iter().any(|reason| NOT_ASKED.contains(&reason.code));
        if verdict.takes > 0 && asked {
            let text = format!("{} could be offered to it, and will be as soon as it can be told", agents(verdict.takes));
            reasons.push(on(verdict.takes, why("SOON", text, "")));
        }
    }
}

fn no_such_resource(request: &str, name: &str, too_many: bool) -> Why {
    if too_many {
        let text = format!("request {request} names {name}, and agents have more kinds of resources than are told apart");
        return why("NO_SUCH_RESOURCE", text, format!("agents name {KINDS_MAX} kinds at most: have them name fewer"));
    }
    let text = format!("request {request} names {name}, which no agent has");
    why("NO_SUCH_RESOURCE", text, format!("`tessera agent --resource {name}=…` on those that have it, or another name"))
}

/// Amounts of which there are some.
fn some(resources: &Resources) -> String {
    let named = resources.items.keys().map(|key| key.name.as_str());
    let kinds = [CPUS, MEM, DISK].into_iter().chain(named).map(|kind| (kind, resources.amount(kind)));
    let all = kinds.filter(|(_, amount)| *amount != 0).map(|(kind, amount)| write_named(kind, amount));
    all.collect::<Vec<_>>().join(" ")
}

fn not_leader() -> Why {
    why("NOT_LEADER", NOT_LEADER, "ask again: requests are passed on to the leader")
}

/// The codes of [`not_asked`].
const NOT_ASKED: [&str; 5] = ["REMOVING", "QUARANTINED", "NOT_CONNECTED", "MIGRATING", "SUPPRESSED"];

/// Why a framework is not asked at all.
fn not_asked(row: &Framework, instance: Option<&Instance>) -> Vec<Why> {
    let mut reasons = Vec::new();
    let name = &row.name;
    if row.removing {
        reasons.push(why("REMOVING", "it is being removed", ""));
    }
    if row.quarantine.is_some() {
        let hint = format!("`tessera framework release {name}`, or an upgrade");
        reasons.push(why("QUARANTINED", "its scheduler failed too often and does not run", hint));
    } else if !instance.is_some_and(|instance| instance.ready) {
        let text = "its scheduler is not running, or not ready yet";
        reasons.push(why("NOT_CONNECTED", text, format!("`tessera framework inspect {name}` says what it waits for")));
    }
    if row.migrating() {
        reasons.push(why("MIGRATING", "its state is being taken over by a new version", "it goes on when that is done"));
    }
    if row.suppressed {
        let text = "its scheduler said that it wants no offers";
        reasons.push(why("SUPPRESSED", text, "the scheduler revives when it has something to place"));
    }
    reasons
}

fn at_limit(leader: &Leader, role: &str, count: u32) -> Option<Why> {
    let (kind, limit, used) = leader.offers.allocator().at_limit(role)?;
    let shown = |amount: i64| match kind {
        "mem" | "disk" => format!("{amount} MiB"),
        _ => format!("{}.{:03}", amount / 1_000, amount % 1_000),
    };
    let text = format!("role {role} has {} of {kind}, offers included, and its quota limit is {}", shown(used), shown(limit));
    let hint = format!("`tessera role set {role} --limit` raises it; or end something of that role");
    Some(on(count, why("QUOTA_LIMIT", text, hint)))
}

/// What can only be said of one request.
fn of_request(request: &ResourceRequest, verdict: &Verdict, row: &Framework, taken_back: bool) -> Vec<Why> {
    let mut reasons = Vec::new();
    let needs: &Resources = &request.resources;
    let all = verdict.agents;
    if verdict.constraints == all {
        let hint = "loosen them, or give agents the attributes: `tessera agent inspect` shows those of one";
        let text = format!("none of {} fulfils its constraints", agents(all));
        reasons.push(on(all, why("CONSTRAINTS", text, hint)));
        return reasons;
    }
    if verdict.constraints > 0 {
        let text = format!("{} do not fulfil its constraints", agents(verdict.constraints));
        reasons.push(on(verdict.constraints, why("CONSTRAINTS", text, "")));
    }
    if verdict.would_fit == 0 && verdict.refused == 0 {
        let text = format!("no agent that fulfils its constraints has {needs}, even with nothing else on it");
        reasons.push(on(all - verdict.constraints, why("TOO_LARGE", text, "smaller pieces, or larger agents")));
        return reasons;
    }
    if verdict.held > 0 {
        let text = format!("{} are held for it: what becomes free there goes to nobody else", agents(verdict.held));
        reasons.push(on(verdict.held, why("HELD", text, "it is met when what runs there has ended")));
    }
    if verdict.too_small > 0 && verdict.takes == 0 && !taken_back {
        let count = verdict.too_small;
        if verdict.free.contains(needs) {
            let text = format!(
                "{needs} are free together and on no single agent; {} would be large enough if they were empty",
                agents(verdict.would_fit)
            );
            let hint = format!(
                "`tessera role set {} --hold-back` with a guarantee has agents kept free for it; or smaller pieces",
                row.role
            );
            reasons.push(on(count, why("FRAGMENTED", text, hint)));
        } else {
            let text = format!("each of {} has less free than {needs}", agents(count));
            reasons.push(on(count, why("TOO_SMALL", text, "wait until something ends, or ask for smaller pieces")));
        }
    }
    reasons
}
