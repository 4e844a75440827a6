import type { DomainEvents } from '../domain/telemetry.ts';
import type { Level } from './log.ts';

/** What every event may carry besides its own fields. */
interface Common {
  /** W3C Trace Context §3.2.2.3, taken over from the caller. */
  traceId?: string | undefined;
  spanId?: string | undefined;
}

/** The fields of each event, besides those that the domain names. Ids and names only: never a token, a password or free text of a caller. */
export interface BrokerEvents {
  'broker.starting': Common & { version: string; replicaId: string };
  'broker.ready': Common & { grpcPort: number; httpPort: number };
  'broker.stopping': Common & { graceMs: number; unary: number; streams: number };
  'broker.stopped': Common & { forced: boolean; durationMs: number };
  'readiness.changed': Common & { ready: boolean; notReady: string[] };
  'door.opened': Common & { door: string; host: string; port: number; tls: boolean };
  'tls.loaded': Common & { door: string; certFile: string; notAfter: string };
  'tls.refused': Common & { door: string; certFile: string; error: unknown };

  'rpc.finished': Common & { method: string; door: string; code: string; durationMs: number; workload: string };
  'rpc.refused': Common & {
    method: string;
    door: string;
    code: string;
    reason: string;
    durationMs: number;
    workload: string;
  };
  'rpc.unavailable': Common & { method: string; door: string; reason: string; workload: string; cause: unknown };
  'rpc.failed': Common & { method: string; door: string; incident: string; workload: string; cause: unknown };
  'http.failed': Common & { path: string; incident: string; cause: unknown };

  'flush.committed': Common & { rows: number; durationMs: number };
  'flush.failed': Common & { rows: number; error: unknown };
  'storage.lost': Common & { error: unknown };
  'storage.restored': Common & { downMs: number };
  'storage.clock_skew': Common & { skewMs: number };
  'schema.migrated': Common & { from: number; to: number };

  'policy.loaded': Common & { tenant: string; revision: string; agents: number; tools: number };
  /** As the loader reports them: file, line, column, path, message. */
  'policy.refused': Common & { tenant: string; issues: readonly object[] };
  'config.loaded': Common & { file: string };

  'attestation.accepted': Common & { workload: string; kind: string; issuer: string };
  'attestation.refused': Common & { reason: string; issuer: string };
  'bundle.refreshed': Common & { source: string; keys: number; sequence: number };
  'bundle.failed': Common & { source: string; staleMs: number; error: unknown };
  'keys.rotated': Common & { tenant: string; kid: string; state: string };
  'keys.retired': Common & { tenant: string; kid: string };

  'set.received': Common & { transmitter: string; event: string; mapped: boolean };
  'set.refused': Common & { err: string };
  'vault.logged_in': Common & { server: string; method: string; lifeMs: number };
  'vault.login_failed': Common & { server: string; error: unknown };
  'vault.token_lost': Common & { server: string; tenant: string; taskId: string; leases: number };
  'vault.token_failed': Common & { server: string; tenant: string; taskId: string; error: unknown };

  'audit.lagging': Common & { tenant: string; lagMs: number };
  'worker.failed': Common & { worker: string; error: unknown };
}

export type EventFields = BrokerEvents & DomainEvents;
export type EventName = keyof EventFields;

export interface EventRow<F> {
  level: Exclude<Level, 'silent'>;
  /** The sentence in the log. */
  line: string;
  /** Labels take few values: never an id, a workload or text that a caller chooses. */
  counter?: { name: string; labels: readonly (keyof F & string)[] };
}

/** The one table (docs/architecture.md): what is said and counted when something happens. Call sites only name the row. */
export const events: { readonly [K in EventName]: EventRow<EventFields[K]> } = {
  'broker.starting': { level: 'info', line: 'the broker is starting' },
  'broker.ready': { level: 'info', line: 'the broker is serving' },
  'broker.stopping': { level: 'info', line: 'the broker is stopping: calls in flight finish, streams are told' },
  'broker.stopped': { level: 'info', line: 'the broker has stopped' },
  'readiness.changed': { level: 'warn', line: 'whether this replica can issue has changed' },
  'door.opened': { level: 'info', line: 'a door is open' },
  'tls.loaded': { level: 'info', line: 'certificate and key are in use', counter: count('tls_loaded', ['door']) },
  'tls.refused': {
    level: 'error',
    line: 'the new certificate or key cannot be used; the old ones stay',
    counter: count('tls_refused', ['door']),
  },

  'rpc.finished': { level: 'debug', line: 'a call was answered' },
  'rpc.refused': {
    level: 'debug',
    line: 'a call was refused',
    counter: count('rpc_refused', ['method', 'door', 'reason']),
  },
  'rpc.unavailable': { level: 'warn', line: 'a call could not be served now' },
  'rpc.failed': {
    level: 'error',
    line: 'a call met a defect; its caller was given the incident number',
    counter: count('rpc_failed', ['method', 'door']),
  },
  'http.failed': { level: 'error', line: 'an HTTP request met a defect', counter: count('http_failed', []) },

  'task.opened': { level: 'info', line: 'a task was opened', counter: count('tasks_opened', []) },
  'task.handed_over': {
    level: 'info',
    line: 'a task goes on with another agent or workload',
    counter: count('tasks_handed_over', []),
  },
  'task.extended': { level: 'info', line: "a task's deadline was moved", counter: count('tasks_extended', []) },
  'task.closing': { level: 'info', line: 'a task is closing', counter: count('tasks_closing', ['cause']) },
  'task.closed': { level: 'info', line: 'a task is closed', counter: count('tasks_closed', ['state']) },

  'lease.issued': {
    level: 'debug',
    line: 'a credential was issued',
    counter: count('leases_issued', ['tool', 'tier', 'provider']),
  },
  'lease.renewed': {
    level: 'debug',
    line: 'a credential was renewed',
    counter: count('leases_renewed', ['tool', 'tier', 'provider']),
  },
  'lease.denied': {
    level: 'info',
    line: 'a credential was denied',
    counter: count('leases_denied', ['tool', 'tier', 'effect']),
  },
  'lease.locked': {
    level: 'info',
    line: 'a credential of a locked tool is being settled',
    counter: count('leases_locked', ['tool', 'tier', 'provider']),
  },
  'task.denied': { level: 'info', line: 'a task was not opened: it is locked', counter: count('tasks_denied', []) },
  'lock.created': {
    level: 'warn',
    line: 'LOCKED: an operator or a detector placed a lock; nothing is issued under it',
    counter: count('locks_created', ['scope']),
  },
  'evidence.exported': { level: 'info', line: 'what is recorded about a task and those below it was exported' },
  'lock.lift_requested': { level: 'warn', line: 'a person wants a lock lifted; a second one has to agree' },
  'lock.lifted': { level: 'warn', line: 'a lock was lifted', counter: count('locks_lifted', ['scope']) },
  'lock.expired': { level: 'warn', line: 'a lock has ended by its time', counter: count('locks_expired', ['scope']) },
  'lock.settled': { level: 'info', line: 'what was open under a lock is closed' },
  'lease.abandoned': {
    level: 'warn',
    line: 'a credential was made and not handed out; it is being revoked',
    counter: count('leases_abandoned', ['provider', 'reason']),
  },
  'lease.returned': {
    level: 'debug',
    line: 'a credential was given back',
    counter: count('leases_returned', ['tool', 'tier', 'provider']),
  },
  'lease.taken_away': {
    level: 'info',
    line: 'the new policy revision no longer allows a credential; it is being settled',
    counter: count('leases_taken_away', ['tool', 'tier', 'provider']),
  },
  'lease.stopped': {
    level: 'info',
    line: 'because of a signal policy no longer allows a credential; it is being settled',
    counter: count('leases_stopped', ['tool', 'tier', 'provider']),
  },
  'signal.reported': {
    level: 'info',
    line: 'a signal is in force',
    counter: count('signals_reported', ['subjectKind', 'kind']),
  },
  'detector.fired': {
    level: 'warn',
    line: 'a detector found recorded calls suspicious, and says so as a signal',
    counter: count('detectors_fired', ['detector']),
  },
  'signal.cleared': {
    level: 'info',
    line: 'a signal was taken back',
    counter: count('signals_cleared', ['subjectKind', 'kind']),
  },
  'lease.settled': {
    level: 'debug',
    line: 'a lease has its outcome',
    counter: count('leases_settled', ['provider', 'outcome', 'cause']),
  },
  'lease.corrected': {
    level: 'info',
    line: 'a credential that was called irrevocable is revoked after all',
    counter: count('leases_corrected', ['provider', 'target']),
  },
  'lease.given_up': {
    level: 'warn',
    line: 'an operator has declared a credential finished by hand; the broker tries no more',
    counter: count('leases_given_up', ['provider', 'target']),
  },
  'lease.irrevocable': {
    level: 'error',
    line: 'a credential could not be revoked although its kind says that it can; an operator must look',
    counter: count('leases_irrevocable', ['provider', 'target']),
  },
  'settle.batch': { level: 'debug', line: 'a batch of leases is being settled' },
  'settle.failed': {
    level: 'warn',
    line: 'settling a lease failed; it is tried again',
    counter: count('settle_failures', ['provider', 'target']),
  },
  'settle.retried': {
    level: 'info',
    line: 'an operator has made leases due for settlement again',
    counter: count('settle_retries', []),
  },
  'target.failing': {
    level: 'error',
    line: 'revoking fails at a target again and again; it gets one attempt every few seconds until one succeeds',
    counter: count('target_failing', ['target']),
  },
  'target.recovered': {
    level: 'info',
    line: 'revoking works again at a target',
    counter: count('target_recovered', ['target']),
  },
  'stray.found': {
    level: 'error',
    line: 'a target holds a credential of ours that no open lease owns',
    counter: count('strays_found', ['provider', 'target', 'why']),
  },
  'stray.revoked': {
    level: 'warn',
    line: 'a credential that no open lease owned was revoked at its target',
    counter: count('strays_revoked', ['provider', 'target']),
  },
  'stray.failed': {
    level: 'error',
    line: 'a credential that no open lease owns could not be revoked',
    counter: count('strays_failed', ['provider', 'target']),
  },
  'lease.missing': {
    level: 'error',
    line: 'a target does not know the credential of an open lease',
    counter: count('leases_missing', ['provider', 'target']),
  },
  'reconcile.finished': {
    level: 'info',
    line: 'leases and target were compared',
    counter: count('reconciliations', ['provider', 'target']),
  },
  'reconcile.failed': {
    level: 'error',
    line: 'leases and target could not be compared',
    counter: count('reconcile_failures', ['provider', 'target']),
  },
  'settle.degraded': {
    level: 'error',
    line: 'a closed task still has leases without a good outcome',
    counter: count('settle_degraded', []),
  },
  'approval.requested': {
    level: 'info',
    line: 'people are asked for an approval',
    counter: count('approvals_requested', ['tool', 'tier']),
  },
  'approval.settled': {
    level: 'info',
    line: 'an approval is decided, or has ended of itself',
    counter: count('approvals_settled', ['state']),
  },
  'approval.break_glass_requested': {
    level: 'error',
    line: 'BREAK-GLASS: a person asks to set policy aside for a task; a second person has to agree',
    counter: count('break_glass_requested', ['tool', 'tier']),
  },
  'approval.break_glass': {
    level: 'error',
    line: 'BREAK-GLASS: two people have set policy aside for a task, for 30 minutes',
    counter: count('break_glass', ['tool', 'tier']),
  },
  'call.recorded': {
    level: 'debug',
    line: 'a tool call was recorded',
    counter: count('tool_calls_recorded', ['tool', 'tier', 'reporter']),
  },
  'call.raised': {
    level: 'warn',
    line: 'a tool call does not fit what was granted; it is recorded',
    counter: count('tool_call_violations', ['tool', 'tier', 'violation']),
  },
  'notify.failed': {
    level: 'warn',
    line: 'a webhook did not take a message; it is sent again',
    counter: count('webhook_failures', ['endpoint']),
  },
  'notify.gave_up': {
    level: 'error',
    line: 'a message to a webhook was given up',
    counter: count('webhook_given_up', ['endpoint']),
  },
  'notify.delivered': {
    level: 'debug',
    line: 'a webhook took a message',
    counter: count('webhook_delivered', ['endpoint']),
  },
  'provider.failed': {
    level: 'warn',
    line: 'a target system or its provider failed',
    counter: count('provider_failures', ['provider', 'operation']),
  },

  'storage.failed': {
    level: 'error',
    line: 'a database operation failed',
    counter: count('storage_failures', ['operation']),
  },
  'flush.committed': { level: 'debug', line: 'a group of writes was committed', counter: count('flushes', []) },
  'flush.failed': {
    level: 'error',
    line: 'a group of writes was not committed; none of its callers got a credential',
    counter: count('flush_failures', []),
  },
  'storage.lost': {
    level: 'error',
    line: 'the database cannot be reached; nothing is issued',
    counter: count('storage_lost', []),
  },
  'storage.restored': { level: 'info', line: 'the database answers again' },
  'storage.clock_skew': {
    level: 'error',
    line: "the broker's clock and its database's are too far apart; nothing is issued",
    counter: count('clock_skew', []),
  },
  'schema.migrated': { level: 'info', line: 'the database schema was migrated' },

  'policy.loaded': { level: 'info', line: 'a policy revision is running', counter: count('policy_loaded', []) },
  'policy.refused': {
    level: 'error',
    line: 'an edit of the policy was refused; the running revision stays',
    counter: count('policy_refused', []),
  },
  'config.loaded': { level: 'info', line: 'the configuration was read' },

  'attestation.accepted': {
    level: 'debug',
    line: 'an attestation was verified',
    counter: count('attestations_accepted', ['kind']),
  },
  'attestation.refused': {
    level: 'info',
    line: 'an attestation was refused',
    counter: count('attestations_refused', ['reason']),
  },
  'bundle.refreshed': { level: 'info', line: 'the keys of an issuer were refreshed', counter: count('bundles', []) },
  'bundle.failed': {
    level: 'warn',
    line: 'the keys of an issuer could not be refreshed; the last good ones stay to their bound',
    counter: count('bundle_failures', []),
  },
  'keys.rotated': { level: 'info', line: 'a signing key changed its state', counter: count('keys_rotated', ['state']) },
  'keys.retired': { level: 'info', line: 'a signing key was retired' },

  'set.received': {
    level: 'info',
    line: 'a security event was taken; one that is not mapped is about nobody here',
    counter: count('security_events', ['transmitter', 'mapped']),
  },
  'set.refused': {
    level: 'warn',
    line: 'a security event token was refused',
    counter: count('security_events_refused', ['err']),
  },
  'vault.logged_in': {
    level: 'info',
    line: 'the broker has logged in to a Vault server',
    counter: count('vault_logins', ['server', 'method']),
  },
  'vault.login_failed': {
    level: 'error',
    line: 'the broker could not log in to a Vault server; nothing is issued from it, and nothing revoked, until it can',
    counter: count('vault_login_failures', ['server']),
  },
  'vault.token_lost': {
    level: 'warn',
    line: 'a Vault server has ended the token of a task that is open; what was made with it has died, and is settled',
    counter: count('vault_tokens_lost', ['server']),
  },
  'vault.token_failed': {
    level: 'warn',
    line: 'the token of a task could not be renewed or ended at its Vault server; tried again',
    counter: count('vault_token_failures', ['server']),
  },

  'audit.lagging': { level: 'error', line: 'the audit log lags behind its bound; nothing is issued' },
  'worker.failed': {
    level: 'error',
    line: 'a background worker failed; it is started again',
    counter: count('worker_failures', ['worker']),
  },
};

function count<L extends string>(name: string, labels: readonly L[]): { name: string; labels: readonly L[] } {
  return { name: `leasehold_${name}_total`, labels };
}
