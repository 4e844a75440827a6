import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

interface Options extends RemoteOptions {
  requestId?: string;
}

export function credentialReturn(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'return',
    summary: 'Give a credential back before its end',
    description:
      'Ends a credential that is not needed any more: it is revoked at its target. Harmless when it has ended.',
    examples: [
      ['leasehold credential return lse_0198f1c2a4b57d3e8f60718293a4b5c6', 'done with it'],
      ['leasehold credential return lse_0198f1c2a4b57d3e8f60718293a4b5c6 --json', 'with the lease as JSON'],
    ],
  });
  command.argument('<lease>', 'lease identifier', identifier('lse'));
  withRequestId(command).action(async (leaseId: string, options: Options) => {
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.CredentialService.method.returnCredential, {
      requestId: options.requestId ?? randomUUID(),
      leaseId,
    });
    if (options.json === true) remote.jsonLine(remote.ReturnCredentialResponseSchema, answer);
    else remote.showLeases(answer.lease === undefined ? [] : [answer.lease]);
  });
}
