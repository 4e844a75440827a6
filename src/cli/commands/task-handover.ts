import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

interface Options extends RemoteOptions {
  agent: string;
  agentWorkload: string;
  justification: string;
  requestId?: string;
}

export function taskHandover(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'handover',
    summary: 'Let another agent or workload go on with a task',
    description:
      'Lets an open task go on with another agent, or another workload of its agent: after a crash, at a change of shift. ' +
      'Nothing goes along: credentials of the one before are settled, approvals are void, and tasks that it has handed on ' +
      'are closed. Shows what the new one may do.',
    examples: [
      [
        'leasehold task handover tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --agent reconciler --agent-workload spiffe://example.org/agent/reconciler/2 --justification "the first one crashed"',
        'another instance of the same agent',
      ],
    ],
  });
  command
    .argument('<task>', 'task identifier', identifier('tsk'))
    .requiredOption('--agent <name>', 'registered agent that goes on')
    .requiredOption('--agent-workload <id>', 'the one workload (SPIFFE ID) of it that may act from now on')
    .requiredOption('--justification <text>', 'why; recorded, never decides');
  withRequestId(command).action(async (taskId: string, options: Options) => {
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.TaskService.method.handOverTask, {
      requestId: options.requestId ?? randomUUID(),
      taskId,
      agent: options.agent,
      agentWorkload: options.agentWorkload,
      justification: options.justification,
    });
    if (options.json === true) {
      remote.jsonLine(remote.HandOverTaskResponseSchema, answer);
      return;
    }
    remote.showTask(answer.task);
    remote.line();
    remote.showPlan(answer.plan);
    remote.line();
    remote.line(`${answer.endedLeases} credentials are being settled, ${answer.closedTasks} tasks below were closed`);
  });
}
