import type { JsonObject } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { AuditStore } from '../domain/store.ts';
import { isId } from '../domain/ids.ts';
import type { Evidence } from '../domain/evidence.ts';
import type { Tasks } from '../domain/tasks.ts';
import { entriesOf, type TimelineEntry, type TimelineStep, type TimelineStore } from '../domain/timeline.ts';
import { AuditService, TimelineStep as StepMessage } from '../gen/leasehold/v1/audit_service_pb.js';
import { Tier } from '../gen/leasehold/v1/common_pb.js';
import { service } from './call.ts';
import { tierMessage } from './convert.ts';
import { nextPageToken, pageSize, pageToken, taskIdField } from './fields.ts';
import { voucherMessage } from './tool-call-convert.ts';

const messageChars = 64 * 1024;

const isEventId = (id: string) => isId('evt', id);

const steps: Record<TimelineStep, StepMessage> = {
  intent: StepMessage.INTENT,
  decision: StepMessage.DECISION,
  approval: StepMessage.APPROVAL,
  credential: StepMessage.CREDENTIAL,
  call: StepMessage.CALL,
  effect: StepMessage.EFFECT,
  raised: StepMessage.RAISED,
  settlement: StepMessage.SETTLEMENT,
  change: StepMessage.CHANGE,
};

export function auditService(
  tasks: Pick<Tasks, 'visible'>,
  audit: AuditStore,
  timeline: TimelineStore,
  evidence: Evidence,
) {
  return service(AuditService, {
    listAuditEvents: async (request, { caller }) => {
      const task = await tasks.visible(caller, taskIdField(request.taskId));
      const after = pageToken(request.pageToken, isEventId);
      const page = await audit.ofTask(task.tenant, task.taskId, pageSize(request.pageSize, 100), after);
      return {
        events: page.items.map((event) => ({
          eventId: event.eventId,
          kind: event.kind,
          eventTime: timestampFromMs(event.at),
          actor: event.actor,
          taskId: event.taskId,
          leaseId: event.leaseId ?? '',
          detail: event.detail as JsonObject,
        })),
        nextPageToken: nextPageToken(page.next),
      };
    },

    listTimeline: async (request, { caller }) => {
      const { tenant, taskId } = await tasks.visible(caller, taskIdField(request.taskId));
      const after = pageToken(request.pageToken, isEventId);
      const page = await timeline.ofTask(tenant, taskId, request.tree, pageSize(request.pageSize, 200), after);
      return {
        entries: page.items.flatMap(entriesOf).map(entryMessage),
        nextPageToken: nextPageToken(page.next),
      };
    },

    exportEvidence: async function* (request, { caller, signal }) {
      for await (const part of evidence.export(caller, taskIdField(request.taskId), signal)) {
        if ('lines' in part) {
          for (const lines of inMessages(part.lines)) yield { part: { case: 'lines' as const, value: lines } };
        } else {
          const { task, lease, approval, call, event } = part.counts;
          const counts = { tasks: task, leases: lease, approvals: approval, calls: call, events: event };
          const { digest, truncated } = part;
          yield { part: { case: 'summary' as const, value: { digest, ...counts, truncated } } };
        }
      }
    },
  });
}

/** Whole lines, as many as fit comfortably. */
function* inMessages(lines: string): Iterable<string> {
  for (let from = 0; from < lines.length;) {
    const end = from + messageChars >= lines.length ? lines.length : lines.lastIndexOf('\n', from + messageChars) + 1;
    // One line that is longer than this goes as it is.
    const to = end > from ? end : lines.indexOf('\n', from) + 1 || lines.length;
    yield lines.slice(from, to);
    from = to;
  }
}

function entryMessage(entry: TimelineEntry) {
  const { event } = entry;
  return {
    eventId: event.eventId,
    kind: event.kind,
    eventTime: timestampFromMs(event.at),
    step: steps[entry.step],
    taskId: event.taskId,
    actor: event.actor,
    summary: entry.summary,
    voucher: voucherMessage(entry.voucher),
    leaseId: event.leaseId ?? '',
    callId: entry.callId ?? '',
    approvalId: entry.approvalId ?? '',
    policyRule: entry.policyRule ?? '',
    tool: entry.tool ?? '',
    tier: entry.tier === undefined ? Tier.UNSPECIFIED : tierMessage(entry.tier),
  };
}
