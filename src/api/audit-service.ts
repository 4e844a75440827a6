import type { JsonObject } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { AuditStore } from '../domain/store.ts';
import type { Tasks } from '../domain/tasks.ts';
import { AuditService } from '../gen/leasehold/v1/audit_service_pb.js';
import { service } from './call.ts';
import { nextPageToken, pageSize, pageToken, taskIdField } from './fields.ts';

export function auditService(tasks: Pick<Tasks, 'visible'>, audit: AuditStore) {
  return service(AuditService, {
    listAuditEvents: async (request, { caller }) => {
      const task = await tasks.visible(caller, taskIdField(request.taskId));
      const after = pageToken(request.pageToken, (id) => /^[0-9]{1,18}$/.test(id));
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
  });
}
