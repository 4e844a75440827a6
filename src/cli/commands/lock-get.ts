import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

export function lockGet(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'get',
    summary: 'Show a lock, and what is still open or alive under it',
    examples: [['leasehold lock get lck_0198f1c2a4b57d3e8f60718293a4b5c6', 'how far settling is']],
  });
  command
    .argument('<lock>', 'lock identifier', identifier('lck'))
    .action(async (lockId: string, options: RemoteOptions) => {
      const remote = await import('../remote.ts');
      const answer = await remote.connect(options).call(remote.LockService.method.getLock, { lockId });
      if (options.json === true) remote.jsonLine(remote.GetLockResponseSchema, answer);
      else remote.showLock(answer.lock, answer.reach);
    });
}
