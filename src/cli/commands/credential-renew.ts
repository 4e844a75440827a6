import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { withBinding, withMaterial, type MaterialOptions } from '../material-options.ts';
import type { CertificateOptions } from '../client.ts';
import type { DpopOptions } from '../dpop.ts';
import { identifier } from '../values.ts';

interface Options extends RemoteOptions, MaterialOptions, DpopOptions, CertificateOptions {
  requestId?: string;
}

export function credentialRenew(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'renew',
    summary: 'Get the next credential of a lease',
    description:
      'Policy decides anew; the next credential has a lease of its own, is no wider, and does not outlive the task. The ' +
      'credential that it renews works for a short overlap.',
    examples: [
      ['leasehold credential renew lse_0198f1c2a4b57d3e8f60718293a4b5c6 --format token', 'print the next token'],
      [
        'leasehold credential renew lse_0198f1c2a4b57d3e8f60718293a4b5c6 --format pgpass --output ~/.pgpass',
        'replace the file that a program reads',
      ],
    ],
  });
  command.argument('<lease>', 'lease identifier', identifier('lse'));
  withRequestId(withBinding(withMaterial(command))).action(async (leaseId: string, options: Options) => {
    const remote = await import('../remote.ts');
    const { checkOutput, deliver } = await import('../delivery.ts');
    const { dpopProof } = await import('../dpop.ts');
    await checkOutput(options.output);
    const requestId = options.requestId ?? randomUUID();
    const answer = await remote.connect(options).call(remote.CredentialService.method.renewCredential, {
      requestId,
      leaseId,
      dpopProof: await dpopProof(remote.CredentialService.method.renewCredential, options),
    });
    await deliver(remote.required(answer.credential), options, requestId);
  });
}
