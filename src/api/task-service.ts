import { createHash } from 'node:crypto';
import { toBinary } from '@bufbuild/protobuf';
import { fieldInvalid } from '../domain/errors.ts';
import type { HandOver } from '../domain/handover.ts';
import { isId } from '../domain/ids.ts';
import type { ToolAccess } from '../domain/model.ts';
import type { Tasks } from '../domain/tasks.ts';
import { OpenTaskRequestSchema, TaskService, type OpenTaskRequest } from '../gen/leasehold/v1/task_service_pb.js';
import { service } from './call.ts';
import {
  instantOf,
  millisOf,
  nodeMessage,
  planMessage,
  taskMessage,
  taskStateOf,
  tierOf,
  viewMessage,
} from './convert.ts';
import { contextField, labelsField, name, nextPageToken, pageSize, pageToken, taskIdField, text } from './fields.ts';

/** CloseTask with `wait` answers this long before the call's deadline, so that the answer still arrives. */
const answerMargin = 250;

export function taskService(tasks: Tasks, handOver: HandOver, newRequestId: () => string) {
  return service(TaskService, {
    openTask: async (request, { caller }) => {
      const { task, plan, revision } = await tasks.open(caller, {
        requestId: request.requestId || newRequestId(),
        requestDigest: digest(request),
        parentTaskId: optionalTask(request.parentTaskId, 'parent_task_id'),
        intent: text('intent', request.intent.trim(), 1, 2_000),
        agent: name('agent', request.agent),
        agentWorkload:
          request.agentWorkload === '' ? undefined : text('agent_workload', request.agentWorkload, 1, 2_048),
        tools: wantedTools(request),
        context: contextField('context', request.context),
        labels: labelsField('labels', request.labels),
        deadline: deadlineOf(request),
        ttl: millisOf(request.ttl),
        heartbeatInterval: heartbeatOf(request),
      });
      return {
        task: taskMessage(task),
        plan: plan.map(({ access, decision }) => planMessage(access, decision)),
        policyRevision: revision,
      };
    },

    getTask: async (request, { caller }) => {
      const view = await tasks.get(caller, taskIdField(request.taskId));
      return { ...viewMessage(view), children: view.children.map(nodeMessage) };
    },

    listTasks: async (request, { caller }) => {
      const page = await tasks.list(caller, {
        states: request.states.map((state, index) => taskStateOf(`states[${index}]`, state)),
        agent: request.agent === '' ? '' : name('agent', request.agent),
        parentTaskId: optionalTask(request.parentTaskId, 'parent_task_id'),
        rootTaskId: optionalTask(request.rootTaskId, 'root_task_id'),
        labels: labelsField('labels', request.labels),
        pageSize: pageSize(request.pageSize, 50),
        after: pageToken(request.pageToken, (id) => isId('tsk', id)),
      });
      return { tasks: page.items.map(taskMessage), nextPageToken: nextPageToken(page.next) };
    },

    extendTask: async (request, { caller }) => {
      const taskId = taskIdField(request.taskId);
      const deadline = instantOf(request.deadline);
      if (deadline === undefined) throw fieldInvalid('deadline', 'is required');
      const justification = text('justification', request.justification, 0, 2_000);
      return { task: taskMessage(await tasks.extend(caller, taskId, deadline, justification)) };
    },

    handOverTask: async (request, { caller }) => {
      const { task, plan, revision, closedTasks, endedLeases } = await handOver(caller, {
        requestId: request.requestId || newRequestId(),
        taskId: taskIdField(request.taskId),
        agent: name('agent', request.agent),
        agentWorkload: text('agent_workload', request.agentWorkload, 1, 2_048),
        reason: text('justification', request.justification.trim(), 1, 2_000),
      });
      return {
        task: taskMessage(task),
        plan: plan.map(({ access, decision }) => planMessage(access, decision)),
        policyRevision: revision,
        closedTasks,
        endedLeases,
      };
    },

    heartbeatTask: async (request, { caller }) => {
      const due = await tasks.heartbeat(caller, taskIdField(request.taskId));
      return { dueTime: timestamp(due) };
    },

    closeTask: async (request, { caller, deadline, signal }) => {
      const wait = request.wait ? { until: deadline - answerMargin, signal } : undefined;
      const justification = text('justification', request.justification, 0, 2_000);
      const view = await tasks.close(caller, taskIdField(request.taskId), justification, wait);
      return {
        ...viewMessage(view),
        tree: view.tree.items.map(nodeMessage),
        nextPageToken: nextPageToken(view.tree.next),
        tasks: view.tasks,
        unsettledTasks: view.unsettledTasks,
      };
    },

    listTaskTree: async (request, { caller }) => {
      const page = await tasks.tree(caller, taskIdField(request.taskId), {
        limit: pageSize(request.pageSize, 100),
        after: pageToken(request.pageToken, (id) => isId('tsk', id)),
      });
      return { nodes: page.items.map(nodeMessage), nextPageToken: nextPageToken(page.next) };
    },

    watchTask: async function* (request, { caller, signal }) {
      for await (const view of tasks.watch(caller, taskIdField(request.taskId), signal)) yield viewMessage(view);
    },
  });
}

function optionalTask(value: string, field: string): string | undefined {
  return value === '' ? undefined : taskIdField(value, field);
}

function timestamp(ms: number) {
  return { seconds: BigInt(Math.floor(ms / 1_000)), nanos: (ms % 1_000) * 1e6 };
}

function wantedTools(request: OpenTaskRequest): ToolAccess[] {
  if (request.tools.length === 0) throw fieldInvalid('tools', 'must name at least one tool and tier');
  if (request.tools.length > 64) throw fieldInvalid('tools', 'must name at most 64');
  const seen = new Set<string>();
  return request.tools.map((wanted, index) => {
    const access = {
      tool: name(`tools[${index}].tool`, wanted.tool),
      tier: tierOf(`tools[${index}].tier`, wanted.tier),
    };
    const key = `${access.tool}:${access.tier}`;
    if (seen.has(key)) throw fieldInvalid(`tools[${index}]`, `names ${key} a second time`);
    seen.add(key);
    return access;
  });
}

function deadlineOf(request: OpenTaskRequest): number | undefined {
  if (request.deadline !== undefined && request.ttl !== undefined) {
    throw fieldInvalid('ttl', 'give deadline or ttl, not both');
  }
  return instantOf(request.deadline);
}

function heartbeatOf(request: OpenTaskRequest): number | undefined {
  const interval = millisOf(request.heartbeatInterval);
  if (interval !== undefined && (interval < 1_000 || interval > 86_400_000)) {
    throw fieldInvalid('heartbeat_interval', 'must be between 1 s and 24 h');
  }
  return interval;
}

/** Over the request's content without its request_id (AIP-155). */
function digest(request: OpenTaskRequest): string {
  const context = contextField('context', request.context);
  const labels = labelsField('labels', request.labels);
  const bytes = toBinary(OpenTaskRequestSchema, { ...request, requestId: '', context, labels });
  return createHash('sha256').update(bytes).digest('base64url');
}
