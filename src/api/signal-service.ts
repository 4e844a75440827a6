import { createHash } from 'node:crypto';
import { toBinary, type DescMessage, type MessageInitShape, type MessageShape } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { fieldInvalid } from '../domain/errors.ts';
import { highestValue, isSignalKind, type Signal, type Subject } from '../domain/signals/model.ts';
import { maxBatch, maxReason, type SignalDraft, type Signals } from '../domain/signals/signals.ts';
import {
  ClearSignalsRequestSchema,
  ReportSignalsRequestSchema,
  SignalService,
  type SignalReport,
  type SignalSchema,
  type SignalSubject,
} from '../gen/leasehold/v1/signal_service_pb.js';
import { service } from './call.ts';
import { instantOf } from './convert.ts';
import { nextPageToken, pageSize, pageToken, text } from './fields.ts';

export function signalService(signals: Signals, newRequestId: () => string) {
  return service(SignalService, {
    reportSignals: async (request, { caller }) => {
      bounded('signals', request.signals.length);
      const reported = await signals.report(caller, {
        requestId: request.requestId || newRequestId(),
        digest: digest(ReportSignalsRequestSchema, request),
        drafts: request.signals.map((report, index) => draftOf(report, `signals[${index}]`)),
      });
      return { signals: reported.map(signalMessage) };
    },

    listSignals: async (request, { caller }) => {
      const subject = request.subject === undefined ? undefined : subjectOf(request.subject, 'subject');
      request.kinds.forEach((kind, index) => {
        if (!isSignalKind(kind)) throw fieldInvalid(`kinds[${index}]`, 'is not a kind of signal');
      });
      const page = await signals.list(caller, {
        subjectKind: subject?.kind,
        subject: subject?.name,
        kinds: request.kinds,
        past: request.past,
        pageSize: pageSize(request.pageSize, 100),
        after: pageToken(request.pageToken, isKey),
      });
      return { signals: page.items.map(signalMessage), nextPageToken: nextPageToken(page.next) };
    },

    clearSignals: async (request, { caller }) => {
      bounded('signal_ids', request.signalIds.length);
      const cleared = await signals.clear(caller, {
        requestId: request.requestId || newRequestId(),
        digest: digest(ClearSignalsRequestSchema, request),
        signalIds: request.signalIds,
        reason: text('reason', request.reason, 0, maxReason),
      });
      return { signals: cleared.map(signalMessage) };
    },
  });
}

function bounded(field: string, count: number): void {
  if (count < 1 || count > maxBatch) throw fieldInvalid(field, `must have 1 to ${maxBatch} entries`);
}

/** The same content, whatever the name of the request. */
function digest<D extends DescMessage>(schema: D, request: MessageShape<D>): string {
  const bytes = toBinary(schema, { ...request, requestId: '' });
  return createHash('sha256').update(schema.typeName).update(bytes).digest('base64url');
}

function draftOf(report: SignalReport, field: string): SignalDraft {
  if (report.subject === undefined)
    throw fieldInvalid(`${field}.subject`, 'must name an agent, workload, tool or task');
  if (report.value === undefined && report.kind === 'risk') {
    throw fieldInvalid(`${field}.value`, `is required for a risk score: 0 to ${highestValue}`);
  }
  return {
    subject: subjectOf(report.subject, `${field}.subject`),
    kind: report.kind,
    value: report.value ?? highestValue,
    reason: report.reason,
    expiresAt: instantOf(report.expireTime),
  };
}

function subjectOf({ subject }: SignalSubject, field: string): Subject {
  switch (subject.case) {
    case 'agent':
      return { kind: 'agent', name: subject.value };
    case 'workload':
      return { kind: 'workload', name: subject.value };
    case 'tool':
      return { kind: 'tool', name: subject.value };
    case 'taskId':
      return { kind: 'task', name: subject.value };
    default:
      throw fieldInvalid(field, 'must name an agent, workload, tool or task');
  }
}

const cases = { agent: 'agent', workload: 'workload', tool: 'tool', task: 'taskId' } as const;

export function signalMessage(signal: Signal): MessageInitShape<typeof SignalSchema> {
  const { subject, expiresAt, clearedAt } = signal;
  return {
    signalId: signal.signalId,
    subject: { subject: { case: cases[subject.kind], value: subject.name } },
    kind: signal.kind,
    value: signal.value,
    reason: signal.reason,
    source: signal.source,
    reportTime: timestampFromMs(signal.reportedAt),
    occurTime: timestampFromMs(signal.occurredAt),
    ...(expiresAt === undefined ? {} : { expireTime: timestampFromMs(expiresAt) }),
    ...(clearedAt === undefined ? {} : { clearTime: timestampFromMs(clearedAt) }),
  };
}

/** Page tokens are the key of the last row: subject kind, subject, kind, source. */
function isKey(token: string): boolean {
  try {
    const key: unknown = JSON.parse(token);
    return Array.isArray(key) && key.length === 4 && key.every((part) => typeof part === 'string');
  } catch {
    return false;
  }
}
