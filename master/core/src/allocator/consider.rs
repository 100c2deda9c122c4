//! The decision about one framework and one agent: what it may be offered there, or why nothing.
//!
//! Invariant: it depends on nothing but what the tables say at this moment, and changes nothing, so that rounds
//! and explanations cannot differ.

use super::vector::{CPUS, MEM, Vector};
use super::{Allocator, CLASSES, Pieces, REGULAR, REVOCABLE, ROOT};
use crate::limits::{GRANT_PARTS, OFFER_MIN_CPUS_MILLI, OFFER_MIN_MEM_MIB};

/// On which grounds something is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// To meet the guarantee of this role, or of one below.
    Guarantee(usize),
    /// To everybody, by shares.
    Fair,
    /// To be taken back at any time, of what guarantees keep.
    Revocable,
}

impl Stage {
    pub(super) const fn class(self) -> usize {
        match self {
            Self::Guarantee(_) | Self::Fair => REGULAR,
            Self::Revocable => REVOCABLE,
        }
    }
}

/// Why somebody is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pass {
    /// Nothing is free that is worth an offer.
    NothingFree,
    /// It is held for another one's request.
    Held,
    /// It refused that before.
    Refused,
    /// It does not fulfil the constraints of any request.
    Constraints,
    /// What is free is less than any request, or than the role's smallest offer.
    TooSmall,
    /// All pieces that it asked for are being offered.
    Enough,
    /// A role's quota limit leaves too little.
    Limit(usize),
    /// Guarantees of others need it.
    Headroom,
}

/// What may be offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) amounts: Vector,
    pub(super) pieces: Pieces,
}

/// How it is asked, and what stood in the way if nothing may be offered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cuts<'a> {
    /// Only this request is asked about.
    pub(super) only: Option<usize>,
    /// As if it were so.
    pub(super) supposed: Option<&'a Supposed>,
    /// It would be otherwise if quota limits left more.
    pub(super) limit: bool,
    /// It would be otherwise if guarantees left more.
    pub(super) headroom: bool,
}

/// An agent as it would be, and what was promised before.
#[derive(Clone, Debug, Default)]
pub(super) struct Supposed {
    pub(super) free: Vector,
    pub(super) promises: Vec<Promise>,
}

/// So much is as good as used by a role.
#[derive(Clone, Debug)]
pub(super) struct Promise {
    pub(super) role: usize,
    pub(super) amounts: Vector,
    /// Of what is beyond guarantees.
    pub(super) beyond: bool,
}

/// Whether an amount is worth an offer.
pub(super) fn worth(amounts: &Vector) -> bool {
    amounts.get(CPUS) >= OFFER_MIN_CPUS_MILLI || amounts.get(MEM) >= OFFER_MIN_MEM_MIB
}

/// Whether so much of a kind is of any use: without CPU, or without memory, nothing runs.
pub(super) const fn leaves_some(kind: usize, most: i64) -> bool {
    match kind {
        CPUS => most >= OFFER_MIN_CPUS_MILLI,
        MEM => most >= OFFER_MIN_MEM_MIB,
        _ => true,
    }
}

/// What came of cutting amounts down.
#[derive(Clone, Copy, Debug, Default)]
struct Cut {
    /// They are less.
    less: bool,
    /// There may be no CPU, or no memory: what is left of the other is of no use.
    nothing: bool,
}

impl Cut {
    fn cut(&mut self, amounts: &mut Vector, kind: usize, most: i64) {
        let most = most.max(0);
        if amounts.get(kind) > most {
            self.less = true;
            amounts.set(kind, most);
        }
        self.nothing |= !leaves_some(kind, most);
    }
}

impl Allocator {
    /// What a framework may be offered of an agent, and what made it less.
    pub(super) fn consider(
        &self,
        framework: usize,
        agent: usize,
        stage: Stage,
        cuts: &mut Cuts,
    ) -> Result<Part, Pass> {
        let (whose, place) = (&self.frameworks[framework], &self.agents[agent]);
        let role = &self.roles[whose.role].name;
        let supposed = cuts.supposed;
        let free = supposed.map_or_else(|| place.facts.free.clamped(), |supposed| supposed.free.clone());
        let free = self.kinds.open_to(&free, role);
        if !worth(&free) {
            return Err(Pass::NothingFree);
        }
        let class = stage.class();
        if class == REVOCABLE && place.cleared {
            return Err(Pass::Held);
        }
        if class == REGULAR && place.held.is_some_and(|(holder, _)| holder != framework) {
            return Err(Pass::Held);
        }
        let refused = self.refused(agent, framework);
        if refused.is_some_and(|refused| refused.contains(&free)) {
            return Err(Pass::Refused);
        }
        let mut amounts = free.clone();
        let (limit, by) = if class == REGULAR && self.any_limit {
            self.cut_to_limits(whose.role, stage, supposed, &mut amounts)
        } else {
            Default::default()
        };
        let within = amounts.clone();
        let headroom = match stage {
            Stage::Guarantee(needy) => self.cut_to_guarantee(whose.role, needy, supposed, &mut amounts),
            Stage::Fair => self.cut_to_surplus(whose.role, supposed, &mut amounts),
            Stage::Revocable if place.held.is_some() => Cut::default(),
            Stage::Revocable => self.cut_to_kept(&mut amounts),
        };
        if let Some(by) = by.filter(|_| limit.nothing) {
            cuts.limit = true;
            return Err(Pass::Limit(by));
        }
        if headroom.nothing {
            cuts.headroom = true;
            return Err(Pass::Headroom);
        }
        let part = if whose.facts.wants.is_empty() {
            Part { amounts, pieces: Vec::new() }
        } else {
            let of = |amounts: &Vector| self.pieces(framework, agent, class, cuts.only, refused, amounts);
            of(&amounts).map_err(|pass| {
                let small = pass == Pass::TooSmall;
                cuts.headroom = small && headroom.less && of(&within).is_ok();
                cuts.limit = small && !cuts.headroom && limit.less && of(&free).is_ok();
                match pass {
                    _ if cuts.headroom => Pass::Headroom,
                    _ if cuts.limit => Pass::Limit(by.unwrap_or(ROOT)),
                    pass => pass,
                }
            })?
        };
        // What is not taken as it is might be if it were more.
        (cuts.limit, cuts.headroom) = (limit.less, headroom.less);
        if !self.large_enough(whose.role, &part) {
            return Err(Pass::TooSmall);
        }
        if part.pieces.is_empty() && refused.is_some_and(|refused| refused.contains(&part.amounts)) {
            return Err(Pass::Refused);
        }
        Ok(part)
    }

    /// Leave no more than the quota limits of a role and all above it do, beside what guarantees of others below the same
    /// limit need of it; and the one that leaves too little, or the outermost that made it less.
    fn cut_to_limits(
        &self,
        whose: usize,
        stage: Stage,
        supposed: Option<&Supposed>,
        amounts: &mut Vector,
    ) -> (Cut, Option<usize>) {
        let mut all = Cut::default();
        let (mut by, mut none_by) = (None, None);
        // What a guarantee lacks is due to it, whatever those beside it need: the order of guarantees decides.
        let mut due = false;
        for place in self.lineage(whose) {
            let role = &self.roles[place];
            due |= stage == Stage::Guarantee(place);
            let mut cut = Cut::default();
            for (kind, limit) in &role.said.limit {
                let kept = if due || role.below.get(*kind) == 0 { 0 } else { self.others_need_of(whose, place, *kind) };
                cut.cut(amounts, *kind, limit - role.all[REGULAR].sum.get(*kind) - kept - self.promised(supposed, *kind, place));
            }
            by = if cut.less { Some(place) } else { by };
            none_by = if cut.nothing { Some(place) } else { none_by };
            all.less |= cut.less;
            all.nothing |= cut.nothing;
        }
        (all, none_by.or(by))
    }

    /// Leave what guarantees of others need.
    fn cut_to_surplus(&self, role: usize, supposed: Option<&Supposed>, amounts: &mut Vector) -> Cut {
        self.cut_to_surplus_of(role, supposed, amounts, |_| true)
    }

    fn cut_to_surplus_of(
        &self,
        role: usize,
        supposed: Option<&Supposed>,
        amounts: &mut Vector,
        of: impl Fn(usize) -> bool,
    ) -> Cut {
        let mut cut = Cut::default();
        if !self.any_guarantee {
            return cut;
        }
        let others = self.others_need(role, ROOT);
        // What nobody has a guarantee of is anybody's. Not what nobody needs now: while a round meets guarantees, there must
        // not be more for others at its end than at its beginning.
        for kind in self.guaranteed.iter().copied().filter(|kind| of(*kind)) {
            let promised = self.promised(supposed, kind, ROOT);
            cut.cut(amounts, kind, self.there.get(kind) - others.get(kind) - promised);
        }
        cut
    }

    /// No more than a role's guarantee lacks, without what those beside this framework need of it.
    fn cut_to_guarantee(
        &self,
        role: usize,
        needy: usize,
        supposed: Option<&Supposed>,
        amounts: &mut Vector,
    ) -> Cut {
        let beside = self.others_need(role, needy);
        let guarantee = &self.roles[needy].said.guarantee;
        let other = |kind| !guarantee.iter().any(|(of, _)| *of == kind);
        let mut cut = self.cut_to_surplus_of(role, supposed, amounts, other);
        for (kind, _) in guarantee {
            let promised = self.promised(supposed, *kind, needy);
            cut.cut(amounts, *kind, self.roles[needy].lacks(*kind) - beside.get(*kind) - promised);
            // Memory here and CPU there would meet it in numbers only.
            cut.nothing |= !leaves_some(*kind, amounts.get(*kind));
        }
        cut
    }

    /// What was promised to those in a role and below; of the root, what was beyond guarantees.
    fn promised(&self, supposed: Option<&Supposed>, kind: usize, to: usize) -> i64 {
        let promises = supposed.iter().flat_map(|supposed| &supposed.promises);
        let counts = promises.filter(|promise| if to == ROOT { promise.beyond } else { self.within(promise.role, to) });
        counts.map(|promise| promise.amounts.get(kind)).sum()
    }

    /// The most that guarantees leave of each kind to a framework in a role, whatever agent it is; none if nothing that
    /// is of use.
    pub(super) fn room_for(&self, role: usize) -> Option<Vector> {
        let fair = self.there.minus(&self.others_need(role, ROOT));
        let useful = |most: &Vector| [CPUS, MEM].iter().all(|kind| !self.guaranteed.contains(kind) || leaves_some(*kind, most.get(*kind)));
        let mut room = useful(&fair).then(|| fair.clone());
        for needy in self.lineage(role).filter(|place| self.roles[*place].lacks_any()) {
            let beside = self.others_need(role, needy);
            let mut most = fair.clone();
            for (kind, _) in &self.roles[needy].said.guarantee {
                most.set(*kind, self.roles[needy].lacks(*kind) - beside.get(*kind));
            }
            if useful(&most) {
                room.get_or_insert_with(|| most.clone()).at_least(&most);
            }
        }
        room
    }

    /// What guarantees leave to everybody who has none that lacks something; and what of what they keep is not lent.
    pub(super) fn rooms(&self) -> [Vector; CLASSES] {
        let needed = &self.roles[ROOT].below;
        [self.there.minus(needed), needed.minus(&self.revocable)]
    }

    /// Whether a framework may take something of so much.
    pub(super) fn may_take(&self, framework: usize, class: usize, room: &Vector) -> bool {
        let facts = &self.frameworks[framework].facts;
        let fits = |piece: &Vector| self.guaranteed.iter().all(|kind| piece.get(*kind) <= room.get(*kind).max(0));
        let mut wants = facts.wants.iter().enumerate();
        let any = || !self.any_least || self.least_offer(self.frameworks[framework].role).is_none_or(fits);
        facts.wants.is_empty() && any()
            || wants.any(|(at, want)| {
                let offered = facts.offered.get(at).copied().unwrap_or(0);
                want.revocable == (class == REVOCABLE) && offered < want.count && fits(&want.piece)
            })
    }

    /// Whether an agent has some of everything without which a role's guarantee is not met.
    pub(super) fn could_meet(&self, needy: usize, free: &Vector) -> bool {
        self.roles[needy].said.guarantee.iter().all(|(kind, _)| leaves_some(*kind, free.get(*kind)))
    }

    /// No more than guarantees keep and is not in use like that already.
    fn cut_to_kept(&self, amounts: &mut Vector) -> Cut {
        let mut cut = Cut::default();
        let mut any = false;
        // Of what nobody has a guarantee of, any amount goes with what is kept.
        for kind in self.guaranteed.iter().copied() {
            cut.cut(amounts, kind, self.roles[ROOT].below.get(kind) - self.revocable.get(kind));
            any |= amounts.get(kind) > 0;
        }
        // Else nothing of it is kept.
        cut.nothing |= !any;
        cut
    }

    /// What guarantees need below `above` that are not of the line from there down to a role.
    pub(super) fn others_need(&self, role: usize, above: usize) -> Vector {
        let mut others = self.roles[role].below.clone();
        let mut place = role;
        while place != above && place != ROOT {
            let parent = self.roles[place].parent;
            others.add(&self.roles[parent].below);
            others.take(&self.roles[place].need);
            place = parent;
        }
        others
    }

    /// The same of one kind.
    fn others_need_of(&self, role: usize, above: usize, kind: usize) -> i64 {
        let mut others = self.roles[role].below.get(kind);
        let mut place = role;
        while place != above && place != ROOT {
            let parent = self.roles[place].parent;
            let beside = self.roles[parent].below.get(kind).saturating_sub(self.roles[place].need.get(kind));
            others = others.saturating_add(beside);
            place = parent;
        }
        others
    }

    /// As much as the requests need together that fit there, in the order in which they were made.
    fn pieces(
        &self,
        framework: usize,
        agent: usize,
        class: usize,
        only: Option<usize>,
        refused: Option<&Vector>,
        amounts: &Vector,
    ) -> Result<Part, Pass> {
        let whose = &self.frameworks[framework];
        let (mut left, mut sum) = (amounts.clone(), Vector::default());
        let mut pieces = Vec::new();
        let mut pass = Pass::Constraints;
        let held = self.agents[agent].held.filter(|_| class == REGULAR);
        for (at, want) in whose.facts.wants.iter().enumerate() {
            // What is held for one request is not for another.
            let asked = only.is_none_or(|only| only == at);
            if !asked || want.revocable != (class == REVOCABLE) || held.is_some_and(|held| held != (framework, at)) {
                continue;
            }
            let fits = whose.fits.get(at).and_then(Option::as_ref);
            if fits.is_some_and(|fits| !fits.has(agent)) {
                continue;
            }
            let offered = whose.facts.offered.get(at).copied().unwrap_or(0);
            let missing = want.count.saturating_sub(offered);
            if missing == 0 {
                pass = pass.max_of(Pass::Enough);
                continue;
            }
            // What was declined there, with more or alone, is not offered there again for a while.
            if refused.is_some_and(|refused| refused.contains(&want.piece)) {
                pass = pass.max_of(Pass::Refused);
                continue;
            }
            let all = left.fits(&want.piece).min(i64::from(missing));
            if all <= 0 {
                pass = pass.max_of(Pass::TooSmall);
                continue;
            }
            let count = all.min(self.at_once(&want.piece));
            let part = want.piece.times(count);
            left.take(&part);
            sum.add(&part);
            pieces.push((at, u32::try_from(count).unwrap_or(missing)));
            if count < all {
                break;
            }
        }
        if pieces.is_empty() { Err(pass) } else { Ok(Part { amounts: sum, pieces }) }
    }

    /// Pieces that are granted before others are asked again: no more than a small part of the whole, or one that is worth
    /// an offer. Where agents are few, the first one would else have all of an agent.
    fn at_once(&self, piece: &Vector) -> i64 {
        let of = |kind: usize, amount: i64| if piece.get(kind) > 0 { amount / piece.get(kind) } else { i64::MAX };
        let small = [CPUS, MEM].map(|kind| of(kind, self.total.get(kind) / GRANT_PARTS)).into_iter().min();
        let worth = [(CPUS, OFFER_MIN_CPUS_MILLI), (MEM, OFFER_MIN_MEM_MIB)];
        let enough = worth.map(|(kind, least)| of(kind, least + piece.get(kind) - 1)).into_iter().min();
        small.max(enough).unwrap_or(1).max(1)
    }

    /// Whether it is no smaller than the smallest offer of the role, or of the nearest above that has one.
    fn large_enough(&self, role: usize, part: &Part) -> bool {
        let whole = worth(&part.amounts);
        if !self.any_least || !part.pieces.is_empty() {
            return whole;
        }
        whole && self.least_offer(role).is_none_or(|least| part.amounts.contains(least))
    }

    /// The smallest offer of a role, or of the nearest above that has one.
    fn least_offer(&self, role: usize) -> Option<&Vector> {
        self.lineage(role).map(|place| &self.roles[place].said.min_offer).find(|least| !least.is_zero())
    }
}

impl Pass {
    /// Of two reasons the one that says more.
    const fn max_of(self, other: Self) -> Self {
        match (self, other) {
            (Self::TooSmall, _) => Self::TooSmall,
            (Self::Refused, Self::Enough) => Self::Refused,
            (_, other) => other,
        }
    }
}
