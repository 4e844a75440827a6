import type { NewId } from '../ids.ts';
import type { DecisionFacts } from '../facts.ts';
import type { PolicySource } from '../policy.ts';
import { createJudge, type Ending, type OpenLease } from '../reevaluation.ts';
import { leaseFields, type Emit } from '../telemetry.ts';
import type { Clock, Instant, Millis } from '../time.ts';
import type { SignalBoard } from './store.ts';

export interface SignalWork {
  /** Most open leases that are looked at in one transaction; at least one for each subject. */
  leases: number;
  /** Most entries of the queue that are taken at once. */
  entries: number;
  /** Times after a signal at which the leases of its subject are gone through. */
  passes: readonly Millis[];
}

/** A lease that a signal stopped, and how long ago the signal came. */
export interface Stopped extends Ending {
  sinceSignal: Millis;
}

export interface SignalReevaluationStore {
  /**
   * The next part of the queue, in one transaction: hands the open leases of the subjects to `judge`, marks those that it
   * names for settlement (tokens are on the feed with the commit), and writes their events. With `look` false no lease is
   * read. Undefined when nothing is due.
   */
  step(
    work: SignalWork,
    look: boolean,
    now: Instant,
    judge: (open: readonly OpenLease[]) => Promise<readonly Ending[]>,
  ): Promise<{ looked: number; stopped: readonly Stopped[]; more: boolean } | undefined>;
}

export interface SignalReevaluatorOptions {
  clock: Clock;
  newId: NewId;
  policy: PolicySource;
  store: SignalReevaluationStore;
  board: SignalBoard;
  facts: DecisionFacts;
  kickSettler: () => void;
  emit: Emit;
}

/**
 * The first pass meets nearly all. The others meet a lease that a renewal held locked, one that was decided on a board from
 * just before the signal, and one that its target was still making.
 */
const work: SignalWork = { leases: 1_000, entries: 200, passes: [0, 400, 2_000, 60_000] };

/**
 * Decides the open leases that a signal concerns again, and stops those that no longer stand. Only leases are looked at whose
 * rules read signals (or review dates, which are told as signals). Any replica does the next part.
 */
export function createSignalReevaluator(options: SignalReevaluatorOptions) {
  const { policy, store, clock } = options;
  const judge = createJudge(options);
  return {
    /** True: there may be more to do at once. */
    tick: async (): Promise<boolean> => {
      const now = clock.now();
      const watching = policy.tenants.some((tenant) => policy.current(tenant).watching);
      const done = await store.step(work, watching, now, async (open) => {
        // Those of one tenant at a time.
        const [first] = open;
        // A tenant that is no longer configured has no policy: its leases run out, and hold up nobody's.
        if (first === undefined || !policy.tenants.includes(first.task.tenant)) return [];
        const revision = policy.current(first.task.tenant);
        // Two people have set policy aside for a while, knowing what it says; a lock stops that, a signal does not.
        const concerned = open.filter(
          ({ lease, task, above = [], emergency }) =>
            !emergency && [task, ...above].some(({ agent }) => revision.watches(agent, lease)),
        );
        if (concerned.length === 0) return [];
        // The signals of this queue are committed: a board that is read from now on has them.
        await options.board.refresh();
        return await judge(revision, concerned, now);
      });
      if (done === undefined) return false;
      for (const { lease, rule, sinceSignal } of done.stopped) {
        options.emit('lease.stopped', { ...leaseFields(lease), policyRule: rule, signalToDecisionMs: sinceSignal });
      }
      if (done.stopped.length > 0) options.kickSettler();
      return done.more;
    },
  };
}
