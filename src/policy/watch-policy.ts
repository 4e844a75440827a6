import { ConfigError, formatIssue } from '../config/issue.ts';
import type { Issue } from '../config/issue.ts';
import type { PolicyRevision, TenantPolicy } from '../domain/policy.ts';
import type { KnownNames } from './check-documents.ts';
import { loadWithFingerprint } from './load-policy.ts';
import { fingerprint, listPolicyFiles } from './read-directory.ts';

export interface WatchPolicyOptions extends KnownNames {
  directory: string;
  /** An edit is applied once it has been the same for two looks, so within about twice this. */
  pollMs?: number;
  /** A revision other than the running one was loaded and runs now. Not called for the first. */
  onRevision?: (revision: PolicyRevision) => void;
  /** An edit was refused; the running revision stays. Called once per edit. */
  onError?: (issues: readonly Issue[]) => void;
}

export interface WatchedPolicy extends TenantPolicy {
  /** Loads now, changed or not. `lastError()` says how it went. */
  reload(): Promise<void>;
  close(): void;
}

const maxErrorLines = 20;

/** Loads a policy directory and follows it. Rejects with ConfigError when the first load fails. */
export async function watchPolicy(options: WatchPolicyOptions): Promise<WatchedPolicy> {
  const { directory, pollMs = 400, onRevision, onError } = options;
  const first = await loadWithFingerprint(directory, options);
  if (!first.result.ok) throw new ConfigError(first.result.issues);

  let current = first.result.revision;
  let loaded = first.fingerprint;
  let seen = first.fingerprint;
  let error: string | undefined;
  let closed = false;
  let timer: NodeJS.Timeout | undefined;
  let work: Promise<void> = Promise.resolve();

  const load = async (): Promise<void> => {
    if (closed) return;
    const { result, fingerprint: of } = await loadWithFingerprint(directory, options);
    if (isClosed()) return;
    loaded = seen = of;
    if (!result.ok) {
      error = result.issues.slice(0, maxErrorLines).map(formatIssue).join('\n');
      if (result.issues.length > maxErrorLines) error += `\n… and ${result.issues.length - maxErrorLines} more`;
      onError?.(result.issues);
      return;
    }
    error = undefined;
    // The same documents give the same revision, however often they are written.
    if (result.revision.digest === current.digest) return;
    current = result.revision;
    onRevision?.(current);
  };
  // Asked again after waiting, when it may have changed.
  const isClosed = () => closed;

  /** One at a time, so that an older reading never replaces a newer one. */
  const inTurn = (step: () => Promise<void>): Promise<void> => {
    const turn = work.then(step);
    work = turn.catch(() => undefined);
    return turn;
  };

  const look = async (): Promise<void> => {
    const now = fingerprint(await listPolicyFiles(directory));
    const settled = now === seen;
    seen = now;
    // A file that is still being written looks different each time; half of one could be valid and say less.
    if (settled && now !== loaded) await load();
  };
  const schedule = (): void => {
    if (closed) return;
    timer = setTimeout(() => {
      void inTurn(look)
        .catch((cause: unknown) => {
          error = `${directory}: could not be looked at: ${(cause as Error).message}`;
        })
        .finally(schedule);
    }, pollMs);
    timer.unref();
  };
  schedule();

  return {
    current: () => current,
    lastError: () => error,
    reload: () => inTurn(load),
    close: () => {
      closed = true;
      clearTimeout(timer);
    },
  };
}
