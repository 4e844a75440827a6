import type { Service } from '../../src/api/call.ts';
import { service } from '../../src/api/call.ts';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { AuditService } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { RevocationService } from '../../src/gen/leasehold/v1/revocation_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import type { Call } from '../../src/api/call.ts';

type TaskHandlers = Parameters<typeof service<typeof TaskService>>[1];

const echo = async () => ({});

/** Handlers that succeed with everything, so that what is refused was refused by the doors. */
export function trivialServices(tasks: Partial<TaskHandlers> = {}): Service[] {
  return [
    service(TaskService, {
      openTask: async (request, call) => ({
        task: { taskId: 'tsk_1', agent: request.agent, opener: call.caller.workload, intent: request.intent },
        policyRevision: call.traceparent ?? '',
      }),
      getTask: async (request) => ({ task: { taskId: request.taskId } }),
      listTasks: echo,
      extendTask: echo,
      heartbeatTask: echo,
      closeTask: echo,
      handOverTask: echo,
      listTaskTree: () => ({}),
      async *watchTask(request) {
        yield { task: { taskId: request.taskId } };
      },
      ...tasks,
    }),
    service(CredentialService, {
      issueCredential: echo,
      renewCredential: echo,
      returnCredential: echo,
      async *streamCredential() {
        yield {};
      },
    }),
    service(AdminService, { getStatus: echo, listLeases: echo, listTools: echo }),
    service(AuditService, {
      listAuditEvents: echo,
      listTimeline: echo,
      async *exportEvidence() {
        yield {};
      },
    }),
    service(RevocationService, {
      async *watchRevocations() {
        yield { current: true };
      },
    }),
  ];
}

/** A stream that says hello and then waits until its call ends; `ended` tells with what. */
export function patientStream(ended: (reason: unknown) => void) {
  return async function* watchTask(request: { taskId: string }, call: Call) {
    yield { task: { taskId: request.taskId } };
    await new Promise<void>((resolve) => {
      if (call.signal.aborted) resolve();
      else call.signal.addEventListener('abort', () => resolve(), { once: true });
    });
    ended(call.signal.reason);
  };
}
