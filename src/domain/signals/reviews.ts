import type { PolicySource } from '../policy.ts';
import { reviewOverdue } from '../review.ts';
import type { Clock, Millis } from '../time.ts';
import { highestValue } from './model.ts';
import { maxBatch, type SignalDraft, type Signals } from './signals.ts';
import type { SignalBoard } from './store.ts';

export interface ReviewsOptions {
  clock: Clock;
  policy: PolicySource;
  board: SignalBoard;
  signals: Pick<Signals, 'record'>;
  tenant: string;
}

const source = 'leasehold/reviews';
const kind = 'review_overdue';
/** A signal that somebody cleared although the review is still due comes back after at most this. */
const again: Millis = 3_600_000;

/**
 * Tells a review that has fallen due as a signal, so that open leases are decided again when the date passes and not only at
 * their next renewal. It is taken back when the date is moved, or the agent is gone.
 */
export function createReviews({ clock, policy, board, signals, tenant }: ReviewsOptions) {
  const overdue = () => {
    const now = clock.now();
    return [...policy.current(tenant).agents.values()].filter((agent) => reviewOverdue(agent, now));
  };

  return {
    overdue,

    tick: async (): Promise<void> => {
      await board.refresh();
      const now = clock.now();
      const due = new Map(overdue().map((agent) => [agent.name, agent.reviewBy!]));
      const told = new Set(
        board
          .inForce(tenant, now)
          .filter((signal) => signal.source === source && signal.kind === kind)
          .map(({ subject }) => subject.name),
      );
      const drafts = [
        ...[...due]
          .filter(([name]) => !told.has(name))
          .map(([name, reviewBy]) => draft(name, `the review was due on ${reviewBy}`, false)),
        ...[...told]
          .filter((name) => !due.has(name))
          .map((name) => draft(name, 'the review is not overdue any more', true)),
      ];
      for (const one of drafts.slice(0, maxBatch)) {
        const { name } = one.subject;
        // All replicas find the same at about the same time: the name of the request lets one of them say it.
        const requestId = `${name} ${due.get(name) ?? 'over'} ${Math.floor(now / again)}`;
        await signals.record({ tenant, source, reportedBy: 'broker', requestId, digest: '', drafts: [one] });
      }
    },
  };
}

function draft(agent: string, reason: string, clear: boolean): SignalDraft {
  return {
    subject: { kind: 'agent', name: agent },
    kind,
    value: highestValue,
    reason,
    expiresAt: undefined,
    ...(clear ? { clear } : {}),
  };
}
