import type { AuditEvent } from '../audit.ts';
import type { Caller } from '../caller.ts';
import { BrokerError, fieldInvalid } from '../errors.ts';
import { isId, type NewId } from '../ids.ts';
import type { PolicySource } from '../policy.ts';
import type { Page } from '../store.ts';
import type { Emit } from '../telemetry.ts';
import type { Clock, Instant, Millis } from '../time.ts';
import { highestValue, isSignalKind, knownKinds, subjectKey, type Signal, type Subject } from './model.ts';
import type { SignalBoard, SignalFilter, SignalStore } from './store.ts';

/** What somebody says of a subject. */
export interface SignalDraft {
  subject: Subject;
  kind: string;
  value: number;
  reason: string;
  /** Undefined: until it is cleared. */
  expiresAt: Instant | undefined;
  /** Undefined: now, as the newest word of its source. */
  occurredAt?: Instant | undefined;
  /** Takes back what the source said of this subject under this kind. */
  clear?: boolean;
}

/** A request for signals, once it is known who makes it. */
export interface SignalRequest {
  tenant: string;
  /** What the signals are recorded under, and what the request_id is unique for. */
  source: string;
  reportedBy: string;
  requestId: string;
  /** Digest of the request's content, for telling a retry from a mistake. */
  digest: string;
  drafts: readonly SignalDraft[];
}

export interface SignalsOptions {
  clock: Clock;
  newId: NewId;
  policy: PolicySource;
  store: SignalStore;
  board: SignalBoard;
  /** Most signals in force in a tenant. */
  maxInForce: number;
  /** Wakes this replica's reevaluation. */
  kick: () => void;
  emit: Emit;
}

export type Signals = ReturnType<typeof createSignals>;

export const maxBatch = 100;
export const maxReason = 500;
const maxSubject = 2_048;
const longestLife: Millis = 400 * 86_400_000;

export function createSignals(options: SignalsOptions) {
  const { clock, store, board } = options;

  return {
    record,

    /** What a signal source or an operator reports. Its source is its own attested workload. */
    report: async (
      caller: Caller,
      request: Pick<SignalRequest, 'requestId' | 'digest' | 'drafts'>,
    ): Promise<Signal[]> => {
      const now = clock.now();
      request.drafts.forEach((draft, index) => check(caller.tenant, draft, `signals[${index}]`, now));
      const { tenant, workload } = caller;
      const result = await record({ ...request, tenant, source: workload, reportedBy: workload });
      if (result.digest !== request.digest) {
        throw new BrokerError('REQUEST_ID_REUSED', 'this request_id reported other signals: send a new one');
      }
      return result.signals;
    },

    list: async (caller: Caller, filter: Omit<SignalFilter, 'tenant' | 'now' | 'source'>): Promise<Page<Signal>> =>
      await store.list({ ...filter, tenant: caller.tenant, now: clock.now(), source: ownOnly(caller) }),

    /** Operators clear any signal, a source its own. What is not there or over already is left out of the answer. */
    clear: async (
      caller: Caller,
      request: { requestId: string; digest: string; signalIds: readonly string[]; reason: string },
    ): Promise<Signal[]> => {
      const { tenant, workload } = caller;
      const { requestId, digest, signalIds, reason } = request;
      signalIds.forEach((id, index) => {
        if (!isId('sig', id)) throw fieldInvalid(`signal_ids[${index}]`, 'must be a signal id such as sig_…');
      });
      const own = ownOnly(caller);
      const now = clock.now();
      const found = (await store.byIds(tenant, [...new Set(signalIds)])).filter(
        ({ source }) => own === undefined || source === own,
      );
      if (found.length < new Set(signalIds).size) {
        throw new BrokerError(
          'SIGNAL_NOT_FOUND',
          'one of these signals is not there or not of this source, or its source has said something newer since: list them again',
        );
      }
      // As old as the word that is taken back: a newer one that comes in at this moment stays.
      const cleared = found
        .filter((signal) => signal.clearedAt === undefined)
        .map((signal): Signal => ({ ...signal, clearedAt: now }));
      const events = cleared.map((signal) => event(signal, 'signal.cleared', workload, now, reason));
      const dated = cleared.map(() => true);
      const result = await store.write({
        tenant,
        reporter: workload,
        requestId,
        digest,
        signals: cleared,
        dated,
        events,
      });
      if (result.digest !== digest) {
        throw new BrokerError('REQUEST_ID_REUSED', 'this request_id was used for other signals: send a new one');
      }
      if (result.written > 0) {
        for (const signal of cleared) options.emit('signal.cleared', fields(signal));
        await makeKnown();
      }
      return await store.byIds(tenant, signalIds);
    },
  };

  /** For what the broker has verified or found out itself. The same request again changes nothing. */
  async function record(request: SignalRequest): Promise<{ digest: string; signals: Signal[]; written: number }> {
    const { tenant, source, reportedBy, requestId, digest } = request;
    const now = clock.now();
    const told = request.drafts.filter(({ clear }) => clear !== true).length;
    if (told > 0 && board.count(tenant, now) + told > options.maxInForce) {
      throw new BrokerError(
        'RATE_LIMITED',
        'there are too many signals in force: clear those that are over, let them expire, or raise signals.maxInForce',
        { retryAfterMs: 60_000 },
      );
    }
    const signals = request.drafts.map((draft): Signal => ({
      tenant,
      signalId: options.newId('sig'),
      subject: draft.subject,
      kind: draft.kind,
      value: draft.value,
      reason: draft.reason,
      source,
      reportedBy,
      reportedAt: now,
      occurredAt: draft.occurredAt ?? now,
      expiresAt: draft.expiresAt,
      clearedAt: draft.clear === true ? now : undefined,
    }));
    const seen = new Set<string>();
    for (const [index, { subject, kind }] of signals.entries()) {
      const key = `${subjectKey(tenant, subject)}\n${kind}`;
      if (seen.has(key))
        throw fieldInvalid(`signals[${index}]`, 'is about the same subject and kind as an earlier one');
      seen.add(key);
    }
    const events = signals.map((signal) =>
      event(signal, signal.clearedAt === undefined ? 'signal.reported' : 'signal.cleared', reportedBy, now),
    );
    const dated = request.drafts.map(({ occurredAt }) => occurredAt !== undefined);
    const result = await store.write({ tenant, reporter: source, requestId, digest, signals, dated, events });
    if (result.written > 0) {
      for (const signal of signals) {
        options.emit(signal.clearedAt === undefined ? 'signal.reported' : 'signal.cleared', fields(signal));
      }
      await makeKnown();
    }
    return result;
  }

  /** Decisions of this replica see it when its reporter has the answer; the others are woken. It is written in any case. */
  async function makeKnown(): Promise<void> {
    options.kick();
    await board.refresh().catch(() => undefined);
  }

  function check(tenant: string, draft: SignalDraft, field: string, now: Instant): void {
    const { subject, kind, value, reason, expiresAt } = draft;
    const revision = options.policy.current(tenant);
    const { name } = subject;
    if (name === '' || name.length > maxSubject)
      throw fieldInvalid(`${field}.subject`, `must have 1 to ${maxSubject} characters`);
    if (subject.kind === 'task' && !isId('tsk', name))
      throw fieldInvalid(`${field}.task_id`, 'must be a task id tsk_…');
    if (subject.kind === 'agent' && !revision.agents.has(name)) throw unknown(`${field}.agent`, 'agent', name);
    if (subject.kind === 'tool' && !revision.tools.has(name)) throw unknown(`${field}.tool`, 'tool', name);
    if (!isSignalKind(kind)) {
      throw fieldInvalid(
        `${field}.kind`,
        `must be one of ${Object.keys(knownKinds).join(', ')}, or begin with x_ and hold lower-case letters, digits and "_"`,
      );
    }
    if (!Number.isInteger(value) || value < 0 || value > highestValue) {
      throw fieldInvalid(`${field}.value`, `must be a whole number from 0 to ${highestValue}`);
    }
    if (reason.length > maxReason) throw fieldInvalid(`${field}.reason`, `must be at most ${maxReason} characters`);
    if (expiresAt !== undefined && (expiresAt <= now || expiresAt > now + longestLife)) {
      throw fieldInvalid(`${field}.expire_time`, 'must lie in the future, at most 400 days ahead');
    }
  }
}

/** Those who only report see and change only what is their own. */
function ownOnly(caller: Caller): string | undefined {
  return caller.roles.has('operator') || caller.roles.has('auditor') ? undefined : caller.workload;
}

function unknown(field: string, what: string, name: string): BrokerError {
  return new BrokerError('NAME_UNKNOWN', `${field}: policy registers no ${what} ${name.slice(0, 64)}: check the name`);
}

function fields({ tenant, signalId, subject, kind }: Signal) {
  return { tenant, signalId, subjectKind: subject.kind, kind };
}

function event(
  signal: Signal,
  kind: 'signal.reported' | 'signal.cleared',
  actor: string,
  at: Instant,
  why: string = signal.reason,
): AuditEvent {
  const { subject, expiresAt } = signal;
  return {
    tenant: signal.tenant,
    kind,
    at,
    actor,
    taskId: subject.kind === 'task' ? subject.name : '',
    detail: {
      signal_id: signal.signalId,
      subject_kind: subject.kind,
      subject: subject.name,
      signal: signal.kind,
      value: signal.value,
      source: signal.source,
      ...(why === '' ? {} : { reason: why }),
      occurred_at: new Date(signal.occurredAt).toISOString(),
      ...(expiresAt === undefined ? {} : { expires_at: new Date(expiresAt).toISOString() }),
    },
  };
}
