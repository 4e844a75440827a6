import { BrokerError } from './domain/errors.ts';
import type { PolicyRevision, TenantPolicy } from './domain/policy.ts';

export interface RecordedPolicy extends TenantPolicy {
  /** A revision that was read and compiled. It runs once it is recorded. */
  offer(revision: PolicyRevision): void;
  /** Records what is waiting; called at start and by the monitor until it succeeds. */
  record(): Promise<void>;
}

/**
 * Every decision names its revision (invariant 1), so a revision runs only after its documents are in the database: a
 * digest that nobody can look up explains nothing.
 */
export function createRecordedPolicy(
  write: (revision: PolicyRevision) => Promise<void>,
  lastError: () => string | undefined,
  onRunning: (revision: PolicyRevision) => void,
): RecordedPolicy {
  let running: PolicyRevision | undefined;
  let waiting: PolicyRevision | undefined;
  return {
    current: () => {
      if (running === undefined) {
        throw new BrokerError('POLICY_DENIED', 'no policy revision is running yet: retry when the broker is ready');
      }
      return running;
    },
    lastError,
    offer: (revision) => {
      waiting = revision;
    },
    record: async () => {
      while (waiting !== undefined) {
        const next = waiting;
        await write(next);
        running = next;
        // Not one that was offered meanwhile.
        if (waiting === next) waiting = undefined;
        onRunning(next);
      }
    },
  };
}
