import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { withBinding, withMaterial, type MaterialOptions } from '../material-options.ts';
import type { CertificateOptions } from '../client.ts';
import type { DpopOptions } from '../dpop.ts';
import { collect, identifier, requestArgument, toolAndTier, type ToolAndTier } from '../values.ts';

interface Options extends RemoteOptions, MaterialOptions, DpopOptions, CertificateOptions {
  tool: ToolAndTier;
  argument?: [string, string | number | boolean][];
  justification?: string;
  approval?: string;
  requestId?: string;
}

export function credentialIssue(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'issue',
    summary: 'Get one credential for one tool and tier of a task',
    description:
      'Asks for one credential and prints it: it is secret. Prefer --output, which writes a file that only you can read. ' +
      'Repeating a call with its --request-id gives an equivalent credential for the same lease.',
    examples: [
      [
        'leasehold credential issue tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --tool warehouse:read --format pgpass --output ~/.pgpass',
        'a database login for psql',
      ],
      [
        'eval "$(leasehold credential issue tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --tool warehouse:read --format env)"',
        'as variables of this shell',
      ],
      [
        'leasehold credential issue tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --tool orders:read --format token',
        'a bare access token',
      ],
      [
        'leasehold credential issue tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --tool orders:read --dpop-key ~/.agent-key.pem --format token',
        'one that only the holder of that key can use',
      ],
    ],
  });
  command
    .argument('<task>', 'task identifier', identifier('tsk'))
    .requiredOption('--tool <tool:tier>', 'tool and tier', toolAndTier)
    .option('--argument <name=value>', 'a declared argument of the tool; repeat it for more', collect(requestArgument))
    .option('--justification <text>', 'what this use is for; recorded, never decides')
    .option('--approval <approval>', 'the approval to use; without it one that fits is found', identifier('apr'));
  withRequestId(withBinding(withMaterial(command))).action(async (taskId: string, options: Options) => {
    const remote = await import('../remote.ts');
    const { checkOutput, deliver } = await import('../delivery.ts');
    const { dpopProof } = await import('../dpop.ts');
    await checkOutput(options.output);
    const requestId = options.requestId ?? randomUUID();
    const answer = await remote.connect(options).call(remote.CredentialService.method.issueCredential, {
      requestId,
      taskId,
      tool: options.tool.tool,
      tier: remote.tierValue[options.tool.tier],
      justification: options.justification ?? '',
      approval: options.approval ?? '',
      arguments: Object.fromEntries(options.argument ?? []),
      dpopProof: await dpopProof(remote.CredentialService.method.issueCredential, options),
      bindToCertificate: options.clientCert !== undefined,
    });
    await deliver(remote.required(answer.credential), options, requestId);
  });
}
