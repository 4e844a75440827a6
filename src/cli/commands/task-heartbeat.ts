import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

interface Options extends RemoteOptions {
  requestId?: string;
}

export function taskHeartbeat(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'heartbeat',
    summary: 'Say that the opener of a task is still there',
    description:
      'Tells the broker that whoever opened the task is still there, and prints when the next heartbeat is due. Needed only for ' +
      'a task that was opened with --heartbeat: silence for longer than that closes it.',
    examples: [
      ['leasehold task heartbeat tsk_0198f1c2a4b57d3e8f60718293a4b5c6', 'once'],
      ['watch -n 20 leasehold task heartbeat tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --json', 'every 20 seconds'],
    ],
  });
  command.argument('<task>', 'task identifier', identifier('tsk'));
  withRequestId(command).action(async (taskId: string, options: Options) => {
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.TaskService.method.heartbeatTask, {
      requestId: options.requestId ?? randomUUID(),
      taskId,
    });
    if (options.json === true) remote.jsonLine(remote.HeartbeatTaskResponseSchema, answer);
    else remote.fields([['next due', remote.moment(answer.dueTime)]]);
  });
}
