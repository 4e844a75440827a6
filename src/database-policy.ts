import type { PolicyRevision, TenantPolicy } from './domain/policy.ts';
import type { Activation, PolicyStore } from './domain/revisions.ts';

export interface DatabasePolicy extends TenantPolicy {
  /** Looks which revision is to run, and lets it. Called when woken, in any case twice a second, and after a change. */
  refresh(): Promise<void>;
  /** Whether a revision runs as it was applied. */
  status(): { ready: boolean; detail: string };
}

export interface DatabasePolicyOptions {
  store: Pick<PolicyStore, 'active' | 'documents'>;
  tenant: string;
  /** Throws when the documents do not fit this broker's release or configuration. */
  compile: (documents: string) => PolicyRevision;
  /** Registers nothing, and so denies everything. */
  empty: PolicyRevision;
  onRunning: (revision: PolicyRevision) => void;
  onError: (digest: string, message: string) => void;
}

/**
 * Policy that is applied through the API: every replica runs what the newest activation names. A revision that this
 * replica cannot compile denies everything here: going on with an earlier one would be a guess (design §3.7).
 */
export function createDatabasePolicy(options: DatabasePolicyOptions): DatabasePolicy {
  let running = options.empty;
  let seen: Activation | undefined;
  let error: string | undefined;
  let work: Promise<void> = Promise.resolve();

  const look = async (): Promise<void> => {
    const active = await options.store.active(options.tenant);
    if (active === undefined || active.activationId === seen?.activationId) return;
    if (active.digest !== seen?.digest || error !== undefined) {
      const documents = await options.store.documents(active.digest);
      try {
        if (documents === undefined) throw new Error('its documents are not in the database');
        running = options.compile(documents);
        error = undefined;
        options.onRunning(running);
      } catch (cause) {
        error = `revision ${active.digest} cannot be used by this replica, which denies everything: ${(cause as Error).message}`;
        running = denying(running, active.digest);
        options.onError(active.digest, (cause as Error).message);
      }
    }
    seen = active;
  };

  return {
    current: () => running,
    lastError: () => error,
    /** One look at a time, and each sees what was committed before it was asked for. */
    refresh: () => {
      const turn = work.then(look);
      work = turn.catch(() => undefined);
      return turn;
    },
    status: () => {
      if (error !== undefined) return { ready: false, detail: error };
      if (seen === undefined) {
        return {
          ready: false,
          detail: 'no policy was applied yet, so everything is denied: run `leasehold policy apply DIRECTORY`',
        };
      }
      return { ready: true, detail: running.digest };
    },
  };
}

function denying(before: PolicyRevision, digest: string): PolicyRevision {
  return {
    ...before,
    digest,
    decide: () => ({
      effect: 'deny',
      rule: '',
      reason: 'this broker cannot read the policy revision that is to run; an operator has to look at its status',
      ttl: undefined,
    }),
  };
}
