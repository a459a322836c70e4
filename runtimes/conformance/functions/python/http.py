def handle(event, context):
    return {"statusCode": 201, "headers": {"content-type": "text/html"}, "body": "<p>" + context.http["path"]}
