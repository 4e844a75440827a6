import type { RecordedAuditEvent } from './audit.ts';
import type { Voucher } from './calls/vouching.ts';
import type { Tier } from './model.ts';
import type { Page } from './store.ts';

export type TimelineStep =
  'intent' | 'decision' | 'approval' | 'credential' | 'call' | 'effect' | 'raised' | 'settlement' | 'change';

/** An event with what its lease rests on. */
export interface TimelineEvent extends RecordedAuditEvent {
  approvalId: string | undefined;
  policyRule: string | undefined;
}

export interface TimelineEntry {
  event: TimelineEvent;
  step: TimelineStep;
  summary: string;
  voucher: Voucher;
  callId: string | undefined;
  approvalId: string | undefined;
  policyRule: string | undefined;
  tool: string | undefined;
  tier: Tier | undefined;
}

export interface TimelineStore {
  /** Events of the task, and of the tasks below it with `tree`, in the order in which they were recorded. */
  ofTask(
    tenant: string,
    taskId: string,
    tree: boolean,
    pageSize: number,
    after: string | undefined,
  ): Promise<Page<TimelineEvent>>;
}

type Detail = Readonly<Record<string, unknown>>;
type Told = [step: TimelineStep, summary: string, voucher?: Voucher];

/** An event as an auditor reads it: one entry, two for a call that is over, none for what another event says as well. */
export function entriesOf(event: TimelineEvent): TimelineEntry[] {
  const { detail } = event;
  return tellings(event).map(([step, summary, voucher = 'broker_attested']) => ({
    event,
    step,
    summary,
    voucher,
    callId: text(detail['call_id']) || undefined,
    approvalId: text(detail['approval']) || event.approvalId,
    policyRule: text(detail['rule']) || event.policyRule,
    tool: text(detail['tool']) || undefined,
    tier: (text(detail['tier']) || undefined) as Tier | undefined,
  }));
}

function tellings({ kind, detail }: TimelineEvent): Told[] {
  const access = `${text(detail['tool'])}:${text(detail['tier'])}`;
  switch (kind) {
    case 'task.opened': {
      const until = detail['deadline'] === undefined ? '' : `, until ${text(detail['deadline'])}`;
      return [['intent', `"${text(detail['intent'])}" for agent ${text(detail['agent'])}${until}`, 'self_reported']];
    }
    case 'decision.made':
      return [['decision', decision(detail, access)]];
    // The decision beside it says the same, and why.
    case 'lease.denied':
      return [];
    case 'lease.issued':
    case 'lease.renewed': {
      const renews = kind === 'lease.renewed' ? `, renews ${text(detail['renewed_from'])}` : '';
      const until = text(detail['expires_at']);
      return [['credential', `${access} from ${text(detail['provider'])} until ${until}${renews}`]];
    }
    case 'lease.reissued':
      return [['credential', 'handed out again to a repeated request']];
    case 'lease.abandoned':
      return [['credential', `thrown away, nobody received it: ${text(detail['reason'])}`]];
    case 'lease.returned':
      return [['settlement', `${access} given back by its agent`]];
    case 'lease.settled': {
      const deadBy = detail['dead_by'] ? `, dead by ${text(detail['dead_by'])}` : '';
      return [['settlement', `${access} ${text(detail['outcome'])} (${text(detail['cause'])})${deadBy}`]];
    }
    case 'task.closed':
      return [['settlement', `task closing (${text(detail['cause'])})${quoted(detail['justification'])}`]];
    case 'task.settled':
    case 'task.degraded':
      return [['settlement', `task ${text(detail['state'])}`]];
    case 'call.began':
      return [['call', `${access} ${text(detail['action'])}${target(detail)}`, reporterOf(detail)]];
    case 'call.recorded':
      return [
        ['call', `${access} ${text(detail['action'])}${target(detail)}${stated(detail)}`, reporterOf(detail)],
        ['effect', effect(detail), reporterOf(detail)],
      ];
    case 'call.ended':
      return [['effect', `${access} ${text(detail['action'])} ${effect(detail)}`, reporterOf(detail)]];
    case 'call.unfinished':
      return [['effect', `${access} ${text(detail['action'])} unfinished: nobody said how it ended`]];
    case 'call.raised':
      return [['raised', `${access} ${text(detail['action'])}: ${list(detail['violations'])}`]];
    case 'lease.locked':
      return [['settlement', `${access} ended by lock ${text(detail['lock'])}`]];
    case 'task.denied':
      return [['decision', `deny a task below this one for agent ${text(detail['agent'])}: ${text(detail['reason'])}`]];
    case 'lock.created':
      return [['raised', `locked (${text(detail['lock'])})${quoted(detail['reason'])}`]];
    case 'lock.lift_requested':
      return [['change', `a person wants lock ${text(detail['lock'])} lifted${quoted(detail['reason'])}`]];
    case 'lock.lifted':
      return [['change', `lock ${text(detail['lock'])} lifted${quoted(detail['reason'])}`]];
    default:
      if (kind.startsWith('approval.')) {
        return [['approval', `${kind.slice('approval.'.length)} ${access} ${plain(detail, ofAnyApproval)}`.trimEnd()]];
      }
      return [['change', `${kind} ${plain(detail)}`.trimEnd()]];
  }
}

function decision(detail: Detail, access: string): string {
  const rule = text(detail['rule']);
  const ttl = typeof detail['ttl_ms'] === 'number' ? ` for ${Math.round(detail['ttl_ms'] / 1000)} s` : '';
  const on = detail['approval'] === undefined ? '' : ` on ${text(detail['approval'])}`;
  const renewal = typeof detail['renewal'] === 'number' ? ` (renewal ${detail['renewal']})` : '';
  const reason = text(detail['reason']);
  const why = rule === '' || reason.includes(rule) ? '' : ` [${rule}]`;
  return `${text(detail['effect'])} ${access}${ttl}${on}${renewal}: ${reason}${why}`;
}

/** What the parties themselves say; the event's own `vouching` has it part by part. */
function reporterOf(detail: Detail): Voucher {
  return detail['reporter'] === 'tool' ? 'target_attested' : 'self_reported';
}

function target(detail: Detail): string {
  const at = (detail['target'] ?? {}) as Record<string, string | undefined>;
  if (at['host'] !== undefined) return ` at ${at['host']}:${at['port']}/${at['database']} as ${at['role']}`;
  const where = [at['address'] ?? at['server'] ?? at['resource'], at['path']].filter((part) => part !== undefined);
  return where.length === 0 ? '' : ` at ${where.join(' ')}`;
}

/** Times that are the reporter's word; else the entry's own time says when. */
function stated(detail: Detail): string {
  const { times } = (detail['vouching'] ?? {}) as { times?: Voucher };
  return times === 'broker_attested' ? '' : `, ${text(detail['started_at'])} to ${text(detail['ended_at'])}`;
}

function effect(detail: Detail): string {
  const did = (detail['effect'] ?? {}) as Detail;
  return [
    text(detail['outcome']),
    detail['error'] === undefined ? '' : `(${text(detail['error'])})`,
    did['rows'] === undefined ? '' : `${text(did['rows'])} rows`,
    list(did['objects']),
    list(did['external_ids']),
    did['note'] === undefined ? '' : `"${text(did['note'])}"`,
  ]
    .filter((part) => part !== '')
    .join(' ');
}

const quoted = (value: unknown) => (text(value) === '' ? '' : `: "${text(value)}"`);
const list = (value: unknown) => (Array.isArray(value) ? value.map(text).join(', ') : '');

function text(value: unknown): string {
  return typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean' ? String(value) : '';
}

const maxPlain = 300;

/** Said by the entry itself, or the same for every word on an approval. */
const ofAnyApproval = new Set(['approval', 'tool', 'tier', 'arguments_digest', 'policy_revision']);

/** What an event of another kind says that fits on a line. */
function plain(detail: Detail, except: ReadonlySet<string> = new Set()): string {
  const all = Object.entries(detail)
    .filter(([name, value]) => text(value) !== '' && !except.has(name))
    .map(([name, value]) => `${name}=${text(value)}`)
    .join(' ');
  return all.length > maxPlain ? `${all.slice(0, maxPlain)}…` : all;
}
