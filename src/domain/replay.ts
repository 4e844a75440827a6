import { canBeAskedAgain, decideAgain, foretellAgain, policyEffect, type RecordedDecision } from './decision-record.ts';
import type { PolicyRevision } from './policy.ts';
import type { Millis } from './time.ts';

export const differences = [
  'newly_denied',
  'newly_allowed',
  'newly_needs_approval',
  'no_longer_needs_approval',
  'shorter_life',
  'longer_life',
  'cannot_be_told',
] as const;
export type Difference = (typeof differences)[number];

export interface ReplaySample {
  decisionId: string;
  taskId: string;
  agent: string;
  access: string;
  before: string;
  after: string;
  reason: string;
}

export interface ReplayGroup {
  difference: Difference;
  agent: string;
  /** `tool:tier`. */
  access: string;
  count: number;
  samples: ReplaySample[];
}

export interface ReplayResult {
  decided: number;
  same: number;
  /** Decisions that policy had no part in, or that an earlier release recorded without what was asked. */
  skipped: number;
  groups: ReplayGroup[];
}

/** Below this a life is the same: the time to a deadline is cut in milliseconds. */
const lifeTolerance: Millis = 1_000;
const maxGroups = 10_000;

/** Asks a candidate everything that was asked for real, and keeps what it would have answered otherwise. */
export function createReplay(candidate: PolicyRevision, samples: number) {
  const groups = new Map<string, ReplayGroup>();
  let [decided, same, skipped] = [0, 0, 0];

  return {
    add: (record: RecordedDecision): void => {
      if (!canBeAskedAgain(record) || record.detail.reevaluation === true) {
        skipped++;
        return;
      }
      decided++;
      const { detail, task } = record;
      const before = {
        effect: policyEffect(detail),
        life: detail.approval === undefined ? detail.ttl_ms : undefined,
      };
      const decision = answerOf(candidate, record);
      const after = answered(decision);
      const difference = after === undefined ? 'cannot_be_told' : differenceOf(before, after);
      if (difference === undefined) {
        same++;
        return;
      }
      const access = `${detail.tool}:${detail.tier}`;
      const key = `${difference}\n${task.agent}\n${access}`;
      let group = groups.get(key);
      if (group === undefined) {
        // Beyond what anybody reads: counted together.
        const rest = groups.size >= maxGroups;
        const place = rest ? `${difference}\n*\n*` : key;
        group = groups.get(place) ?? {
          difference,
          agent: rest ? '*' : task.agent,
          access: rest ? '*' : access,
          count: 0,
          samples: [],
        };
        groups.set(place, group);
      }
      group.count++;
      if (group.samples.length >= samples) return;
      group.samples.push({
        decisionId: detail.decision_id,
        taskId: task.taskId,
        agent: task.agent,
        access,
        before: told(before),
        after: after === undefined ? 'unknown' : told(after),
        reason: decision.reason,
      });
    },

    result: (): ReplayResult => ({
      decided,
      same,
      skipped,
      groups: [...groups.values()].sort(
        (a, b) =>
          differences.indexOf(a.difference) - differences.indexOf(b.difference) ||
          b.count - a.count ||
          (a.agent + a.access < b.agent + b.access ? -1 : 1),
      ),
    }),
  };
}

const uncounted = { effect: 'depends', reason: 'it counts what was not counted for this renewal' } as const;

/** A candidate that counts what was not counted then may still say the same whatever that was. */
function answerOf(candidate: PolicyRevision, record: RecordedDecision) {
  const foretold = foretellAgain(candidate, record);
  return foretold === 'open' ? uncounted : (foretold ?? decideAgain(candidate, record));
}

function answered(decision: ReturnType<typeof answerOf>): Answer | undefined {
  if (decision.effect === 'depends') return undefined;
  return {
    effect: decision.effect === 'too_late' ? 'deny' : decision.effect,
    life: decision.effect === 'allow' ? decision.life : undefined,
  };
}

interface Answer {
  effect: 'allow' | 'deny' | 'needs_approval';
  life: Millis | undefined;
}

function differenceOf(before: Answer, after: Answer): Difference | undefined {
  if (before.effect !== after.effect) {
    if (after.effect === 'deny') return 'newly_denied';
    if (after.effect === 'needs_approval') return 'newly_needs_approval';
    return before.effect === 'needs_approval' ? 'no_longer_needs_approval' : 'newly_allowed';
  }
  if (before.life === undefined || after.life === undefined) return undefined;
  if (Math.abs(before.life - after.life) < lifeTolerance) return undefined;
  return after.life < before.life ? 'shorter_life' : 'longer_life';
}

function told({ effect, life }: Answer): string {
  return life === undefined ? effect : `${effect} ${Math.round(life / 1_000)}s`;
}
