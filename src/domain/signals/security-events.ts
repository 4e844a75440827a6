import type { PolicyRevision } from '../policy.ts';
import type { Instant, Millis } from '../time.ts';
import { highestValue } from './model.ts';
import { maxReason, type SignalDraft } from './signals.ts';

/** Whom an event's subject stands for here. An owner stands for every agent that it answers for. */
export type EventSubject = { kind: 'workload' | 'agent' | 'owner'; name: string };

/** One verified event of a security event token (RFC 8417). */
export interface SecurityEvent {
  type: string;
  payload: Readonly<Record<string, unknown>>;
  /** Empty: nobody that the configuration knows. */
  subjects: readonly EventSubject[];
  issuedAt: Instant;
}

/** The payload is not what the event's definition says. */
export class EventInvalid extends Error {}

interface Reading {
  kind: string;
  value: number;
  /** The opposite happened: what was said before is taken back. */
  clear?: true;
  /** A state, in force until the source says otherwise; else a moment, in force for a while. */
  lasting: boolean;
}

type Read = (payload: SecurityEvent['payload']) => Reading | undefined;

const moment = (kind: string, value = highestValue): Reading => ({ kind, value, lasting: false });
const state = (kind: string, value = highestValue): Reading => ({ kind, value, lasting: true });
const over = (kind: string): Reading => ({ kind, value: 0, clear: true, lasting: true });

const caep = 'https://schemas.openid.net/secevent/caep/event-type/';
const risc = 'https://schemas.openid.net/secevent/risc/event-type/';
const ssf = 'https://schemas.openid.net/secevent/ssf/event-type/';
const risks: Readonly<Record<string, number>> = { LOW: 10, MEDIUM: 50, HIGH: 90 };

/** Events that mean something here (OpenID CAEP 1.0 §3, RISC 1.0 §2, SSF 1.0 §8.1.4). Others are taken, and say nothing. */
const readings: Readonly<Record<string, Read>> = {
  [`${caep}session-revoked`]: () => moment('session_revoked'),
  [`${risc}sessions-revoked`]: () => moment('session_revoked'),
  [`${caep}credential-change`]: (payload) => {
    const change = oneOf(payload, 'change_type', ['create', 'revoke', 'update', 'delete']);
    return moment('credential_changed', change === 'revoke' || change === 'delete' ? highestValue : 50);
  },
  [`${risc}credential-compromise`]: () => moment('credential_changed'),
  [`${caep}assurance-level-change`]: (payload) =>
    // Without a direction it is taken for the worse.
    payload['change_direction'] === 'increase' ? over('assurance_lowered') : moment('assurance_lowered'),
  [`${caep}device-compliance-change`]: (payload) =>
    oneOf(payload, 'current_status', ['compliant', 'not-compliant']) === 'compliant'
      ? over('device_not_compliant')
      : state('device_not_compliant'),
  [`${caep}risk-level-change`]: (payload) => state('risk', risks[oneOf(payload, 'current_level', Object.keys(risks))]!),
  [`${risc}account-disabled`]: () => state('account_disabled'),
  [`${risc}account-purged`]: () => state('account_disabled'),
  [`${risc}account-enabled`]: () => over('account_disabled'),
  [`${ssf}verification`]: () => undefined,
  [`${ssf}stream-updated`]: () => undefined,
};

function oneOf(payload: SecurityEvent['payload'], member: string, values: readonly string[]): string {
  const value = payload[member];
  if (typeof value === 'string' && values.includes(value)) return value;
  throw new EventInvalid(`the event's \`${member}\` is not one of ${values.join(', ')}`);
}

export interface EventContext {
  now: Instant;
  /** How long a moment (a session revoked) is in force. */
  keep: Millis;
  revision: Pick<PolicyRevision, 'agents'>;
}

/** What an event comes to. Throws EventInvalid. Pure. */
export function draftsOf(event: SecurityEvent, { now, keep, revision }: EventContext): SignalDraft[] {
  const reading = Object.hasOwn(readings, event.type) ? readings[event.type]!(event.payload) : undefined;
  if (reading === undefined) return [];
  const drafts = new Map<string, SignalDraft>();
  for (const subject of event.subjects) {
    for (const [kind, name] of placesOf(subject, revision)) {
      drafts.set(`${kind} ${name}`, {
        subject: { kind, name },
        kind: subject.kind === 'owner' && reading.kind === 'account_disabled' ? 'owner_left' : reading.kind,
        value: reading.value,
        reason: reasonOf(event),
        expiresAt: reading.lasting ? undefined : now + keep,
        occurredAt: occurredAt(event, now),
        ...(reading.clear === true ? { clear: true } : {}),
      });
    }
  }
  return [...drafts.values()];
}

function placesOf({ kind, name }: EventSubject, revision: EventContext['revision']): ['agent' | 'workload', string][] {
  if (kind === 'workload') return [[kind, name]];
  if (kind === 'agent') return revision.agents.has(name) ? [[kind, name]] : [];
  return [...revision.agents.values()].filter(({ owner }) => owner === name).map((agent) => ['agent', agent.name]);
}

/** CAEP §2: seconds. An event that claims to come from the future is of now. */
function occurredAt({ payload, issuedAt }: SecurityEvent, now: Instant): Instant {
  const at = payload['event_timestamp'];
  const time = typeof at === 'number' && Number.isFinite(at) && at > 0 ? at * 1_000 : issuedAt;
  return Math.min(time, now);
}

/** For people. Never decides. */
function reasonOf({ type, payload }: SecurityEvent): string {
  const name = type
    .split('/')
    .slice(-3)
    .filter((part) => part !== 'event-type')
    .join(' ');
  const by = payload['initiating_entity'];
  const admin = payload['reason_admin'];
  const texts = typeof admin === 'object' && admin !== null ? Object.values(admin) : [admin, payload['reason']];
  const why = texts.find((text) => typeof text === 'string' && text !== '') as string | undefined;
  return `${name}${typeof by === 'string' ? ` (${by})` : ''}${why === undefined ? '' : `: ${why}`}`.slice(0, maxReason);
}
