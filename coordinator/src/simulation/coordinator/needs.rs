//! The likeness of `Cluster::ask_needs` and `Cluster::remove_what_nobody_needs`:
//! all coordinators say what they need, and a round removes the rest.

use std::collections::BTreeSet;
use std::mem::{replace, take};
use std::time::Duration;

use shoal_data::SegmentName;

use super::Coordinator;
use super::changes::{Ended, Why};
use super::round::Round;
use crate::catalog::raft::types::Reply;
use crate::cluster::going::Needs;
use crate::simulation::context::{Context, Message, Millis};
use crate::simulation::network::Node;
use crate::simulation::trace::Briefs;

/// How long another coordinator may take to say what it needs.
const ANSWER_MAX: Millis = 500;
/// After so long without a word of a coordinator its queries are not waited for.
const UNHEARD_MAX: Duration = Duration::from_secs(4);

/// What all coordinators need of segments that wait to be removed.
pub(super) struct Answered {
    term: u64,
    asked: Vec<SegmentName>,
    answers: Vec<Option<Needs>>,
}

/// The same while the others are asked.
pub(super) struct Asking {
    id: u128,
    said: Answered,
    /// Who has not answered.
    left: BTreeSet<usize>,
    deadline: Millis,
}

impl Coordinator {
    /// `Cluster::ask_needs`, up to where it waits for answers; one after the other.
    pub(super) fn ask_needs(&mut self, context: &mut Context) {
        if self.asking.is_some() || !take(&mut self.is_to_ask) {
            return;
        }
        let Some(term) = self.core.leads_in else { return };
        let mut asked = self.core.going.asked();
        asked.retain(|name| self.pins.retired(name).is_none());
        if asked.is_empty() {
            return;
        }
        let answers = vec![Some(self.needs(&asked))];
        let left: BTreeSet<usize> = self.others().collect();
        let id = u128::from(context.new_id());
        for other in &left {
            let message = Message::AskNeeds { id, asked: asked.clone() };
            self.send(context, Node::Coordinator(*other), message);
        }
        let deadline = context.now + ANSWER_MAX;
        self.asking = Some(Asking { id, said: Answered { term, asked, answers }, left, deadline });
        self.look_after_answers(context);
    }

    pub(in crate::simulation) fn needed(
        &mut self,
        context: &mut Context,
        from: usize,
        answer_to: u128,
        needs: Needs,
    ) {
        let Some(asking) = &mut self.asking else { return };
        if asking.id != answer_to || !asking.left.remove(&from) {
            return;
        }
        asking.said.answers.push(Some(needs));
        self.core.silences.answered(&format!("c{from}"));
        self.look_after_answers(context);
    }

    /// `Cluster::ask_needs`, once all have answered or had the time to.
    pub(super) fn look_after_answers(&mut self, context: &mut Context) {
        let now = context.now;
        let is_over = |asking: &mut Asking| asking.left.is_empty() || now >= asking.deadline;
        let Some(Asking { mut said, left, .. }) = self.asking.take_if(is_over) else { return };
        if self.core.leads_in == Some(said.term) {
            let mut may_answer_yet = false;
            for other in &left {
                let silence = self.core.silences.failed(context.instant(), &format!("c{other}"));
                may_answer_yet |= silence <= UNHEARD_MAX;
                said.answers.push(None);
            }
            if !may_answer_yet && self.core.going.is_any_free(&said.asked, &said.answers) {
                context.seen.excused.extend(left.iter().map(|other| (*other, now)));
                self.core.answered = Some(said);
            }
        }
        self.ask_needs(context);
    }

    /// `Cluster::remove_what_nobody_needs`, up to where it waits for the log.
    pub(super) fn remove_what_nobody_needs(&mut self, context: &mut Context, term: u64) {
        let Some(said) = self.core.answered.take().filter(|it| it.term == term) else {
            self.place_anew(context);
            return;
        };
        self.round = Round::Applying(said);
        self.change(context, Some(term), None, Why::ApplyAll);
    }

    /// `Cluster::remove_what_nobody_needs`, from there on.
    pub(super) fn all_applied(&mut self, context: &mut Context, ended: &Ended) {
        let Answered { term, mut asked, answers } = match replace(&mut self.round, Round::Resting) {
            Round::Applying(said) => said,
            other => {
                self.round = other;
                return;
            }
        };
        if matches!(ended, Ok(Reply::Abandoned)) && self.lead(context) == Some(term) {
            self.collect(Some(term));
            asked.retain(|name| self.pins.retired(name).is_none());
            let mut free = self.core.going.release(&asked, &answers);
            free.retain_mut(|(name, workers)| {
                let replicas = self.state.segment(name).map(|segment| &segment.replicas);
                workers.retain(|worker| !replicas.is_some_and(|replicas| replicas.contains(worker)));
                !workers.is_empty()
            });
            if !free.is_empty() {
                let names: Vec<SegmentName> = free.iter().map(|(name, _)| *name).collect();
                context.note(format_args!("c{} releases {}", self.me, Briefs(&names)));
            }
            self.core.discard_in(context.now, term, free);
        }
        self.place_anew(context);
    }
}
