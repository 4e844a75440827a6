import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

export function taskGet(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'get',
    summary: 'Show a task, its leases and what became of them',
    examples: [
      ['leasehold task get tsk_0198f1c2a4b57d3e8f60718293a4b5c6', 'for a person'],
      ['leasehold task get tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --json | jq .task.state', 'for a script'],
    ],
  });
  command
    .argument('<task>', 'task identifier', identifier('tsk'))
    .action(async (taskId: string, options: RemoteOptions) => {
      const remote = await import('../remote.ts');
      const answer = await remote.connect(options).call(remote.TaskService.method.getTask, { taskId });
      if (options.json === true) {
        remote.jsonLine(remote.GetTaskResponseSchema, answer);
        return;
      }
      remote.showTask(answer.task);
      remote.line();
      remote.showLeases(answer.leases);
      if (answer.leases.length > 0) remote.line(remote.summaryText(answer.summary));
      if (answer.children.length === 0) return;
      remote.line();
      remote.showTree(answer.children);
    });
}
